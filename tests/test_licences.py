"""What members state of their licences, and what that means together."""

import json
from pathlib import Path

import pytest

from fuse.errors import CheckpointError
from fuse.front_matter import read_front_matter
from fuse.licence_files import Stated, stated_in
from fuse.licence_terms import NO_CHANGE, NO_TRADE, NOTICES, OWN, SAME, UNKNOWN, Terms, terms_of
from fuse.licences import Parent, RollUp, licence_lines, licences_json, read_licences, roll_up_lines
from fuse.planner import make_plan
from fuse.recipe_yaml import load_recipe
from tests import official_adapters, tiny_grafts, tiny_text
from tests.members import save_member

MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy\n"
    'of this software and associated documentation files (the "Software"), to deal\n'
    "in the Software without restriction, including without limitation the rights\n"
)
BSD = (
    "Redistribution and use in source and binary forms, with or without\n"
    "modification, are permitted provided that the following conditions are met:\n"
)
APACHE = "Apache License\n    Version 2.0, January 2004\n"


def card(front: str) -> str:
    return f"---\n{front}\n---\n\n# A model\n\nlicense: mit\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (card("license: apache-2.0"), {"license": ("apache-2.0",)}),
        (card("license: 'apache-2.0'  # ours"), {"license": ("apache-2.0",)}),
        (card("license: apache-2.0 # ours"), {"license": ("apache-2.0",)}),
        (card("license: [mit, \"apache-2.0\"]"), {"license": ("mit", "apache-2.0")}),
        (card("license:\n- mit\n  - apache-2.0\ntags: [a]"), {"license": ("mit", "apache-2.0"), "tags": ("a",)}),
        (card("license: mit\nlicense: gpl-3.0"), {"license": ("mit",)}),
        (card("license:"), {"license": ()}),
        (card("license: ~"), {"license": ()}),
        (card("license: &a mit"), {"license": ()}),
        (card("license: {a: b}"), {"license": ()}),
        (card("license: " + "[" * 60_000 + "]"), {"license": ()}),
        (card("model-index:\n- name: a\n  results:\n  - task: b\nlicense: mit"), {"license": ("mit",)}),
        (card("# nothing\n\nlicense: mit"), {"license": ("mit",)}),
        ("\ufeff" + card("license: mit").replace("\n", "\r\n"), {"license": ("mit",)}),
        ("# A model\n\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("", {}),
    ],
)  # fmt: skip
def test_front_matter(text: str, found: dict[str, tuple[str, ...]], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_front_matter(tmp_path) == found


def test_front_matter_of_no_card(tmp_path: Path) -> None:
    assert read_front_matter(tmp_path) == {}
    (tmp_path / "README.md").mkdir()
    assert read_front_matter(tmp_path) == {}


@pytest.mark.parametrize(
    ("files", "config", "stated"),
    [
        ({}, {}, Stated()),
        ({"README.md": card("license: MIT")}, {}, Stated("mit", "", "README.md")),
        ({"README.md": card("license: unknown")}, {"license": "mit"}, Stated("mit", "", "config.json")),
        ({"README.md": card("license: [mit, gpl-3.0]")}, {}, Stated("gpl-3.0 + mit", "", "README.md")),
        ({"README.md": card("license: other")}, {}, Stated("other", "", "README.md")),
        (
            {"README.md": card("license: other\nlicense_name: qwen-research\nlicense_link: https://a.b/c")}, {},
            Stated("qwen-research", "https://a.b/c", "README.md", True),
        ),
        ({"README.md": card("license: other\nlicense_name: '<script>'")}, {}, Stated("other", "", "README.md")),
        ({"README.md": card("license: mit\nlicense_link: javascript:x")}, {}, Stated("mit", "", "README.md")),
        ({"README.md": card("license: a|b")}, {}, Stated()),
        ({"LICENSE": "\n   Apache License\n   Version 2.0, January 2004"}, {}, Stated("apache-2.0", "", "LICENSE")),
        ({"LICENSE.txt": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"}, {}, Stated("llama3.1", "", "LICENSE.txt")),
        ({"COPYING": "GNU GENERAL PUBLIC LICENSE\n Version 3"}, {}, Stated("gpl-3.0", "", "COPYING")),
        ({"LICENSE": f"MIT License\n\n{MIT}"}, {}, Stated("mit", "", "LICENSE")),
        ({"LICENSE": "Ask my lawyer."}, {"license": "mit"}, Stated("other", "", "LICENSE")),
        ({"LICENSE": ""}, {"license": ["mit"]}, Stated()),
    ],
)  # fmt: skip
def test_what_a_folder_states(files: dict[str, str], config: dict, stated: Stated, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert stated_in(tmp_path, config) == stated


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (f"Copyright 2018- The Hugging Face team. All rights reserved.\n\n    {APACHE}", "apache-2.0"),
        (f"\ufeff# {APACHE}", "apache-2.0"),
        (f"The MIT License (MIT)\n\nCopyright (c) 2023 One,\nTwo & Three\n\n{MIT}", "mit"),
        (f"Microsoft.\nCopyright (c) Microsoft Corporation.\n\nMIT License\n\n{MIT}", "mit"),
        (f"/*\n * Copyright 2020 One. All rights reserved.\n *\n * {MIT}", "mit"),
        (f"Copyright (c) 2022 One\nAll rights reserved.\n\n{BSD}", "bsd-2-clause"),
        (f"BSD License\n\nFor This-one software\n\nCopyright (c) One.\n\n{BSD}\nNeither the name", "bsd-3-clause"),
        (f'BSD 3-Clause "New" or "Revised" License\n\n{BSD}\nNeither the name', "bsd-3-clause"),
        ("LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date: July 18, 2023", "llama2"),
        ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date", "llama3"),
        ("Gemma Terms of Use\n\nLast modified: March 24, 2025", "gemma"),
        ("Attribution-NonCommercial 4.0 International\n\n=====", "cc-by-nc-4.0"),
        ("Creative Commons Attribution 4.0 International Public License", "cc-by-4.0"),
        (f"ACME RESEARCH LICENSE\nNon-commercial use only. Parts of it are under the {APACHE}", "other"),
        (f"Falcon 180B TII License Version 1.0\n\nbased on {APACHE}", "other"),
        (f"Copyright One. For research, and in parts under the\n{APACHE}", "other"),
        ('Copyright One\n\nLicensed under the Apache License, Version 2.0 (the "License");', "other"),
        (f"Modified MIT License\n\nCopyright (c) 2025 One\n\n{MIT}\nOur only modification is", "other"),
        (f"MIT No Attribution\n\n{MIT}", "other"),
        (MIT.replace("without restriction", "for research"), "other"),
        (f"The Clear BSD License\n\n{BSD}", "other"),
        (f"Ours alone.\n\nGemma Terms of Use\n{BSD}{MIT}", "other"),
        ("MIT License", "other"),
        ("Copyright (c)\n" * 600, "other"),
    ],
)  # fmt: skip
def test_a_licence_is_what_its_text_begins_with(text: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text(text)
    assert stated_in(tmp_path) == Stated(licence, "", "LICENSE")


@pytest.mark.parametrize(
    ("licence", "terms"),
    [
        ("apache-2.0", NOTICES), ("cc-by-4.0", NOTICES), ("cc-by-nc-4.0", NO_TRADE), ("cc-by-nc-nd-4.0", NO_CHANGE),
        ("cc-by-nd-4.0", NO_CHANGE), ("gpl-3.0", SAME), ("llama3.1", OWN), ("gemma", OWN), ("openrail++", OWN),
        ("my-own", UNKNOWN), ("other", UNKNOWN), ("mit + cc-by-nc-2.0", NO_TRADE),
    ],
)  # fmt: skip
def test_terms(licence: str, terms: Terms) -> None:
    assert terms_of(licence) == terms


def together(**stated: str) -> RollUp:
    return RollUp(tuple(Parent(name, f"org/{name}", Stated(licence)) for name, licence in stated.items()))


@pytest.mark.parametrize(
    ("licences", "lines"),
    [
        (
            together(base="mit", a="mit"),
            ["  base, a: mit (its notices are kept)", "  = the output's card says mit, as every parent does"],
        ),
        (
            together(base="llama3", a="cc-by-nc-4.0", b=""),
            [
                "  base: llama3 (has terms of its own, which go with what is made of it)",
                "  a: cc-by-nc-4.0 (no commercial use)",
                "  b: not stated",
                "  ! the output's card says other: not all parents state the same; the strictest that is stated is "
                "cc-by-nc-4.0 of a: no commercial use",
                "  ! what b allows is not known: ask before you share",
            ],
        ),
        (
            together(a="cc-by-sa-4.0", b="gpl-3.0"),
            [
                "  a: cc-by-sa-4.0 (what is made of it bears the same licence)",
                "  b: gpl-3.0 (what is made of it bears the same licence)",
                "  ! the output's card says other: not all parents state the same; the strictest that is stated is "
                "cc-by-sa-4.0 of a: what is made of it bears the same licence",
                "  ! cc-by-sa-4.0 of a and gpl-3.0 of b each want what is made of them under the same licence, which "
                "only one can be",
            ],
        ),
        (
            together(a="", b=""),
            ["  a, b: not stated", "  ! the output's card says other: no parent states a licence"],
        ),
        (
            together(a="other", b="other"),
            [
                "  a, b: other (fuse does not know its terms)",
                "  ! the output's card says other: of a licence that the hub has no word for; the strictest that is "
                "stated is other of a and b: fuse does not know its terms",
            ],
        ),
    ],
)  # fmt: skip
def test_together(licences: RollUp, lines: list[str]) -> None:
    assert roll_up_lines(licences) == lines
    assert read_licences(licences_json(licences), "fuse.json") == licences


def test_everything_that_lends_a_tensor_counts(tmp_path: Path) -> None:
    """A member by its config, a donor by its card, an adapter by a LICENSE file; a folder of several things by none."""
    save_member(tiny_text.build("llama"), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "license": "Apache-2.0"}))
    official_adapters.peft_folder(tmp_path / "style", config)
    (tmp_path / "style" / "LICENSE").write_text("LLAMA 2 COMMUNITY LICENSE AGREEMENT")
    for name in ("memory", "other"):
        tiny_grafts.donor(tmp_path / name, "mks2", config)
    (tmp_path / "memory" / "README.md").write_text(card("license: cc-by-nc-sa-4.0"))
    (tmp_path / "README.md").write_text(card("license: mit"))  # of whatever lies beside them
    (tmp_path / "recipe.yaml").write_text(
        "members: {a: {base: a, adapter: style}}\nlanguage: {method: linear, weights: 1}\n"
        "grafts: [memory, {from: other, name: more}]\n"
    )
    plan = make_plan(load_recipe(tmp_path / "recipe.yaml"))
    assert [line.strip() for line in licence_lines(plan)][:4] == [
        "a: apache-2.0 (its notices are kept)",
        "a.adapter: llama2 (has terms of its own, which go with what is made of it)",
        "grafts.mks2: cc-by-nc-sa-4.0 (no commercial use, and what is made of it bears the same licence)",
        "grafts.more: not stated",
    ]
    assert plan.members[0].licence == "apache-2.0 + llama2"


@pytest.mark.parametrize("told", [[], {}, {"parents": []}, {"parents": [{}]}, {"parents": {"a": "mit"}}, "mit"])
def test_a_record_of_another_form(told: object) -> None:
    with pytest.raises(CheckpointError) as error:
        read_licences(told, "out/fuse.json")
    assert str(error.value) == "out/fuse.json: licences is not a table of parents"
