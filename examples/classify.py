"""Text classification in the style of `run_glue.py`: TrainingArguments on the command line, and topoopt's settings too.

    python examples/classify.py --steps 60 --output_dir runs/classify --topo_mode preserve
    python examples/classify.py --train_file a.tsv --test_file b.tsv --model_name_or_path a/model --num_train_epochs 3

A file holds one example a line: label, tab, text. Without files it is Reuters R8, without a model MiniLM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from _reuters import minilm, reuters
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from topoopt.integrations.transformers import TopoCallback


@dataclass
class DataArguments:
    """What is trained on what."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "model; MiniLM when left out"})
    train_file: str | None = field(default=None, metadata={"help": "label, tab, text; Reuters R8 when left out"})
    test_file: str | None = field(default=None, metadata={"help": "label, tab, text; Reuters R8 when left out"})
    max_length: int = field(default=128, metadata={"help": "tokens of a text that are used"})
    max_test: int = field(default=200, metadata={"help": "test examples that are used"})
    steps: int = field(default=60, metadata={"help": "steps to train, unless epochs are given"})


@dataclass
class TopoArguments:
    """How its neurons are measured."""

    topo_mode: str = field(default="report", metadata={"help": "report, preserve, simplify or hold"})
    topo_every: int = field(default=20, metadata={"help": "measure each this many steps"})
    topo_budget: float | None = field(default=None, metadata={"help": "largest share of time for measuring"})
    topo_products: int = field(default=3, metadata={"help": "Jacobian products of one estimate of r"})
    topo_record: str | None = field(default=None, metadata={"help": "file for the record; see `topoopt report`"})


def read(file: str | None, part: str) -> tuple[list[str], list[str]]:
    """Return (texts, labels)."""
    if file is None:
        return reuters(part)
    pairs = [line.split("\t", 1) for line in Path(file).read_text(encoding="utf-8").splitlines() if line]
    return [text for _, text in pairs], [label for label, _ in pairs]


def main(arguments: list[str] | None = None) -> Trainer:
    parser = HfArgumentParser([DataArguments, TopoArguments, TrainingArguments])  # type: ignore[arg-type]
    parser.set_defaults(output_dir="runs/classify", report_to="none", logging_steps=10)
    data, topo, args = parser.parse_args_into_dataclasses(arguments)
    if args.num_train_epochs == TrainingArguments.num_train_epochs and args.max_steps < 0:
        args.max_steps = data.steps
    set_seed(args.seed)

    texts, labels = read(data.train_file, "train")
    test_texts, test_labels = read(data.test_file, "test")
    names = sorted({*labels, *test_labels})
    name = data.model_name_or_path or str(minilm())
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(names))

    def encode(texts: list[str], labels: list[str]) -> list[dict]:
        tokens = tokenizer(texts, truncation=True, max_length=data.max_length)["input_ids"]
        return [{"input_ids": ids, "labels": names.index(label)} for ids, label in zip(tokens, labels)]

    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=encode(texts, labels),  # type: ignore[arg-type]
        eval_dataset=encode(test_texts[: data.max_test], test_labels),  # type: ignore[arg-type]
        processing_class=tokenizer,
        compute_metrics=lambda result: {"accuracy": float((result[0].argmax(-1) == result[1]).mean())},
        callbacks=[
            TopoCallback(mode=topo.topo_mode, every=topo.topo_every, budget=topo.topo_budget, record=topo.topo_record)
        ],
    )
    folder = Path(args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    trainer.log_metrics("eval", trainer.evaluate())
    return trainer


if __name__ == "__main__":
    main()
