"""What stands at the end of a verb's --help: commands as one types them, and the page of `docs` that tells the rest."""

# verb -> (page, examples)
EXAMPLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "recipe": (
        "recipes.md",
        ("fuse recipe new", "fuse recipe new two.yaml --want fuse --member hue --member form --base base --yes"),
    ),
    "plan": (
        "merge.md",
        ("fuse plan recipe.yaml", "fuse plan recipe.yaml --image-size 1024x768", "fuse plan recipe.yaml --all --json"),
    ),
    "inspect": ("inspect.md", ("fuse inspect tokens a b", "fuse inspect deltas recipe.yaml --report deltas")),
    "inspect encoders": (
        "inspect.md#encoders",
        ("fuse inspect encoders a b --images photos", "fuse inspect encoders a b --images photos --llm --report page"),
    ),
    "inspect deltas": (
        "inspect.md#task-vectors",
        ("fuse inspect deltas recipe.yaml", "fuse inspect deltas recipe.yaml --report deltas"),
    ),
    "inspect attention": (
        "inspect.md#attention",
        ('fuse inspect attention a b --image photo.png --question "What does the sign say?" --out looks',),
    ),
    "inspect tokens": ("inspect.md#tokenizers-and-templates", ("fuse inspect tokens a b c",)),
    "inspect pairs": ("inspect.md#pairs", ("fuse inspect pairs a b c --base base --images photos",)),
    "merge": (
        "merge.md",
        (
            "fuse merge recipe.yaml out",
            "fuse merge recipe.yaml out --force --no-hash",
            "fuse merge recipe.yaml out --worker 0/4",
            "fuse merge recipe.yaml s3://models/out",
        ),
    ),
    "verify": ("verify.md", ("fuse verify out", "fuse verify out --no-load --sources .")),
    "commit": ("scale.md", ("fuse commit recipe.yaml out",)),
    "import": (
        "graft.md",
        (
            "fuse import clipcap coco_prefix-009.pt donors/clipcap --host gpt2",
            "fuse import lavin checkpoint-19.pth donors/lavin --host llama --set adapter_scale=1",
        ),
    ),
    "ask": (
        "fuse.md",
        (
            'fuse ask out "What does the sign say?" --image photo.png',
            'fuse ask out "What does the sign say?" --image photo.png --attention seen.png',
            'fuse ask recipe.yaml "What does the sign say?" --image photo.png --ensemble',
        ),
    ),
    "search": (
        "search.md",
        (
            "fuse search recipe.yaml --data questions.jsonl --out found",
            "fuse search recipe.yaml --data questions.jsonl --out found --over language.weights.math=0..1 --steps 7",
        ),
    ),
    "eval": (
        "evaluation.md",
        ("fuse eval parent other out --data questions.jsonl --out results", "fuse eval out --data questions.jsonl"),
    ),
    "export": (
        "export.md",
        ("fuse export out --to portable portable", "fuse export out --to native plain"),
    ),
    "push": ("share.md", ("fuse push out me/my-model --dry-run", "fuse push out me/my-model --private")),
    "schema": ("recipes.md", ("fuse schema > recipe.schema.json",)),
    "studio": ("studio.md", ("fuse studio", "fuse studio hue form --base base --open", "fuse studio recipe.yaml")),
    "completion": ("README.md", ('eval "$(fuse completion bash)"',)),
}


def epilog(verb: str) -> str:
    """The end of a verb's --help, in lines that click leaves as they are."""
    page, examples = EXAMPLES[verb]
    head = "Examples" if len(examples) > 1 else "Example"
    return "\n".join(["\b", f"{head}:", *(f"  {line}" for line in examples), f"More: docs/{page}"])
