import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse.methods import trim as module
from fuse.methods.trim import Cut, Threshold, find_cut, find_cuts, float_of, thresholds


def numbers(seed, size, dtype):
    """Denormals, zeros and equals among them."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-45, 10, (size,), generator=generator)
    return (torch.randint(-3, 4, (size,), generator=generator) * scale).to(dtype)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 80), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=40)
def test_thresholds_are_what_a_sort_finds(seed, size, block, dtype):
    given_ = numbers(seed, size, dtype)
    keeps = range(1, size + 1)
    ordered = given_.abs().sort(descending=True).values.tolist()
    for one, keep in zip(thresholds(lambda: given_.split(block), keeps, dtype), keeps, strict=True):
        assert float_of(one.bits, dtype) == ordered[keep - 1]
        assert one.on_it == ordered.count(ordered[keep - 1])
        assert one.room == keep - sum(number > ordered[keep - 1] for number in ordered)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 80), st.data())
def test_several_cuts_are_those_found_alone(seed, size, block, data):
    given_ = numbers(seed, size, torch.float32)
    keeps = data.draw(st.lists(st.integers(1, size), max_size=4))
    parts = lambda: given_.split(block)  # noqa: E731
    assert find_cuts(parts, keeps, torch.float32) == [find_cut(parts, keep, torch.float32) for keep in keeps]


def test_few_elements_and_many_are_cut_alike():
    given_ = torch.tensor([1.0, -1, 2, 1, -1, torch.inf, 3])
    for keep in range(1, 8):
        few, many = (find_cut(lambda size=size: given_.split(size), keep, torch.float32) for size in (7, 3))
        kept = [module.trim(given_.clone(), cut, 0).ne(0).tolist() for cut in (few, many)]
        assert kept[0] == kept[1] and sum(kept[0]) == keep


def test_passes_are_shared():
    passes = []

    def parts():
        passes.append(1)
        return torch.arange(1 << 17).float().split(1 << 16)

    assert [cut.bits for cut in find_cuts(parts, [1, 5, 1 << 16], torch.float32)] == [
        int(torch.tensor(float((1 << 17) - keep)).view(torch.int32)) for keep in (1, 5, 1 << 16)
    ]
    assert len(passes) == 3  # a look at the size, and one for each digit


def test_on_a_threshold():
    given_ = torch.tensor([1.0, -1, 2, 1, -1, 1])
    one = 0x3F800000
    assert thresholds(lambda: [given_], [3], torch.float32) == [Threshold(one, room=2, on_it=5)]
    assert find_cut(lambda: given_.split(2), 3, torch.float32) == Cut(one, last=1)
    assert find_cut(lambda: given_.split(2), 6, torch.float32).last > 5
