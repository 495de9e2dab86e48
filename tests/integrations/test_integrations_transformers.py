"""TopoCallback in Trainer: no trace in the weights, numbers in the trainer's own rows, the whole life of a training."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from topoopt.integrations.transformers import TopoCallback  # noqa: E402
from topoopt.optimizer.attach import rule_of as innermost  # noqa: E402

STEPS = 6
OPTIONS = {"every": 2, "budget": None, "homology": 0, "per_group": False, "products": 3}


def bert(dropout=0.1, seed=0):
    """Return a BERT of two thin layers."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def rows(n=64, seed=1):
    """Return token ids with labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 40, (n, 8), generator=generator)
    labels = torch.randint(0, 3, (n,), generator=generator)
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y} for i, y in zip(ids, labels)]


@pytest.fixture
def make_trainer(tmp_path):
    """Builds a Trainer with a callback (None: without); keywords are TrainingArguments', `trainer` is Trainer's."""

    def make(callback, *, model=None, kind=Trainer, trainer=None, folder="out", **arguments):
        settings = {
            "output_dir": str(tmp_path / folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        extra = dict(trainer or {})
        if "model_init" not in extra:
            extra["model"] = bert() if model is None else model
        callbacks = [] if callback is None else [callback]
        return kind(
            args=TrainingArguments(**{**settings, **arguments}),
            train_dataset=rows(),
            eval_dataset=rows(16, seed=2),
            callbacks=callbacks,
            **extra,
        )

    return make


def weights(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def topo_rows(trainer):
    return [row for row in trainer.state.log_history if "topo/step" in row]


def steps_read(trainer, after=0):
    return [row["topo/step"] for row in topo_rows(trainer) if row["step"] > after]


def steps_measured(trainer, after=0):
    found = [row for row in topo_rows(trainer) if "topo/r_pair" in row and row["step"] > after]
    return [row.get("topo/measured_step", row["topo/step"]) for row in found]


ALL = [float(step) for step in range(STEPS)]


def assert_no_faults(callback):
    assert callback.last is not None
    assert callback.last.groups, callback.last.skipped
    assert "spectral" not in callback.last.skipped, callback.last.skipped
    assert not [key for key in callback.last.counts if key.startswith("fault/")], callback.last.counts


VARIANTS = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "clipping": {"max_grad_norm": 0.1},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True},
    "smoothing": {"label_smoothing_factor": 0.1},
    "sgd-cosine": {"optim": "sgd", "lr_scheduler_type": "cosine", "warmup_steps": 2},
    "adafactor": {"optim": "adafactor"},
    "neftune": {"neftune_noise_alpha": 5.0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_report_leaves_no_trace(make_trainer, name):
    bare = make_trainer(None, **VARIANTS[name])
    bare.train()
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, **VARIANTS[name])
    trainer.train()
    assert equal(weights(bare), weights(trainer))
    assert_no_faults(callback)
    first = int(name == "sgd-cosine")  # a step of rate 0, as warm-ups begin, is no step
    assert steps_read(trainer) == ALL[first:]
    assert steps_measured(trainer) == [first, first + 2.0, first + 4.0]
    for row, plain in zip(trainer.state.log_history, bare.state.log_history, strict=True):
        assert {key: row[key] for key in plain if "runtime" not in key and "second" not in key} == {
            key: value for key, value in plain.items() if "runtime" not in key and "second" not in key
        }


@pytest.mark.slow
def test_report_leaves_no_trace_when_compiled(make_trainer):
    bare = make_trainer(None, torch_compile=True, torch_compile_backend="eager")
    bare.train()
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, torch_compile=True, torch_compile_backend="eager")
    trainer.train()
    assert equal(weights(bare), weights(trainer))
    assert_no_faults(callback)


def test_rows_are_plain_and_saved(make_trainer, tmp_path):
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, save_strategy="steps", save_steps=3)
    trainer.train()
    found = topo_rows(trainer)
    assert found
    for row in found:
        assert "loss" in row
        assert {"topo/phase", "topo/proximity", "topo/edge", "topo/lr_scale", "topo/loss"} <= row.keys()
        assert ("topo/r_pair" in row) == (row["topo/step"] % 2 == 0)
        assert all(type(value) is float for key, value in row.items() if key.startswith("topo/"))
        assert all(math.isfinite(value) for key, value in row.items() if key.startswith("topo/"))
        assert len(row) < 40  # layers are not for the console
    state = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert [row["topo/step"] for row in state["log_history"] if "topo/step" in row] == ALL


def test_the_loss_is_the_steps_own(make_trainer):
    """Also with dropout, and with evaluations in between."""
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    trainer.train()
    for row in topo_rows(trainer):
        assert row["topo/loss"] == pytest.approx(row["loss"], rel=1e-4)


def own_loss(outputs, labels, num_items_in_batch=None):
    return 3.0 * nn.functional.cross_entropy(outputs["logits"], labels)


class OwnTrainer(Trainer):
    """A trainer with a loss of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = 5.0 * nn.functional.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("how", ["function", "override", "smoothing"])
def test_the_trainers_own_loss_is_read(make_trainer, how):
    callback = TopoCallback(**OPTIONS)
    options = {
        "function": {"trainer": {"compute_loss_func": own_loss}},
        "override": {"kind": OwnTrainer},
        "smoothing": {"label_smoothing_factor": 0.2},
    }[how]
    trainer = make_trainer(callback, model=bert(dropout=0.0), eval_strategy="steps", eval_steps=1, **options)
    trainer.train()
    found = topo_rows(trainer)
    assert len(found) == STEPS
    for row in found:
        assert row["topo/loss"] == pytest.approx(row["loss"], rel=1e-4)
    assert "compute_loss" not in trainer.__dict__  # the trainer has its own method back


def test_the_callback_runs_before_the_reporters(make_trainer):
    order = []

    class Reporter(TrainerCallback):
        """Sees the logs as W&B's callback does."""

        def on_log(self, args, state, control, logs=None, **kwargs):
            order.append("topo/step" in logs)

    from transformers.integrations import integration_utils

    known = dict(integration_utils.INTEGRATION_TO_CALLBACK)
    integration_utils.INTEGRATION_TO_CALLBACK["tensorboard"] = Reporter
    try:
        callback = TopoCallback(trackers=False, **OPTIONS)
        trainer = make_trainer(callback, report_to=["tensorboard"])
        trainer.train()
    finally:
        integration_utils.INTEGRATION_TO_CALLBACK.clear()
        integration_utils.INTEGRATION_TO_CALLBACK.update(known)
    assert order == [True] * STEPS + [False]
    names = [type(cb).__name__ for cb in trainer.callback_handler.callbacks]
    assert names.index("TopoCallback") < names.index("Reporter")


def test_two_trainings_one_after_the_other(make_trainer):
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback)
    trainer.train()
    first = callback.last
    assert not innermost(trainer.optimizer)._optimizer_step_pre_hooks
    assert not [cb for cb in trainer.callback_handler.callbacks if type(cb).__name__ == "RowWriter"]
    trainer.train()
    assert callback.last is not first
    assert steps_read(trainer) == ALL
    assert steps_measured(trainer) == [0.0, 2.0, 4.0]
    assert_no_faults(callback)


def test_a_training_that_breaks_off_can_be_started_again(make_trainer):
    class Stop(TrainerCallback):
        """Breaks the first training off."""

        armed = True

        def on_step_end(self, args, state, control, **kwargs):
            if self.armed and state.global_step == 3:
                self.armed = False
                raise KeyboardInterrupt

    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback)
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert steps_read(trainer) == ALL
    assert steps_measured(trainer) == [0.0, 2.0, 4.0]
    assert len(innermost(trainer.optimizer)._optimizer_step_pre_hooks) == 0


def test_auto_find_batch_size(make_trainer):
    class Greedy(Trainer):
        """Runs out of memory with more than four examples."""

        def training_step(self, model, inputs, num_items_in_batch=None):
            if len(inputs["labels"]) > 4:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 MiB")
            return super().training_step(model, inputs, num_items_in_batch)

    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, kind=Greedy, auto_find_batch_size=True)
    trainer.train()
    assert steps_read(trainer) == ALL
    assert steps_measured(trainer) == [0.0, 2.0, 4.0]
    assert_no_faults(callback)


def test_model_init(make_trainer):
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, trainer={"model_init": lambda trial=None: bert()})
    trainer.train()
    first = weights(trainer)
    trainer.train()
    assert equal(first, weights(trainer))
    assert_no_faults(callback)


def test_hyperparameter_search(make_trainer):
    """Every trial is a training of its own: measured from its first step, with its own rates, and nothing left behind."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen = []
    callback = TopoCallback(sinks=[lambda m: seen.append((m.step, m.lr[0], m.r_spec))], **OPTIONS)
    trainer = make_trainer(
        callback,
        trainer={"model_init": lambda trial=None: bert()},
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=3,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [1e-3, 2e-2])},
        compute_objective=lambda metrics: metrics["eval_loss"],
        backend="optuna",
        n_trials=2,
        direction="minimize",
        sampler=optuna.samplers.BruteForceSampler(seed=0),
    )
    assert best.hyperparameters["learning_rate"] in (1e-3, 2e-2)
    assert [step for step, _, _ in seen] == [0, 2, 4, 0, 2, 4]
    assert {seen[0][1], seen[3][1]} == {1e-3, 2e-2}
    for (_, lr, r), (_, other_lr, other_r) in zip(seen[:1], seen[3:4]):  # the same model and batch, at two rates
        assert r / lr == pytest.approx(other_r / other_lr, rel=0.05)
    assert len(innermost(trainer.optimizer)._optimizer_step_pre_hooks) == 0


def test_lora(make_trainer):
    peft = pytest.importorskip("peft")

    def adapted():
        set_seed(0)
        config = peft.LoraConfig(r=4, target_modules=["query", "value", "intermediate.dense"], task_type="SEQ_CLS")
        return peft.get_peft_model(bert(), config)

    bare = make_trainer(None, model=adapted())
    bare.train()
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, model=adapted())
    trainer.train()
    assert equal(weights(bare), weights(trainer))
    assert callback.last is not None
    assert math.isfinite(callback.last.r_spec), callback.last.skipped


def test_optimizer_cls_and_kwargs(make_trainer):
    callback = TopoCallback(**OPTIONS)
    chosen = {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 1e-3})}
    trainer = make_trainer(callback, trainer=chosen)
    trainer.train()
    assert isinstance(innermost(trainer.optimizer), torch.optim.RMSprop)
    assert_no_faults(callback)


@pytest.mark.parametrize("mode", ["report", "hold"])
def test_resume_is_the_unbroken_run(make_trainer, tmp_path, mode):
    """Bit for bit in report mode; a resumed reading starts cold, so that steering agrees to the error of readings."""
    options = {**OPTIONS, "mode": mode, "estimator": "spectral", "reading_products": 4}
    saving = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "cosine"}
    seen, again = [], []
    unbroken = make_trainer(TopoCallback(sinks=[seen.append], **options), **saving)
    unbroken.train()
    resumed = make_trainer(TopoCallback(sinks=[again.append], **options), model=bert(seed=5), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    if mode == "report":
        assert equal(weights(unbroken), weights(resumed))
    assert [m.step for m in again] == [3, 5]  # due at once
    whole = {row["topo/step"]: row for row in topo_rows(unbroken)}
    assert topo_rows(resumed)[-3]["topo/loss"] == whole[3.0]["topo/loss"]
    assert topo_rows(resumed)[-3]["topo/lr_scale"] == pytest.approx(whole[3.0]["topo/lr_scale"], rel=0.5)


def test_a_topo_optimizer_of_ones_own(make_trainer, tmp_path):
    """Without the callback: Trainer takes a wrapped optimizer as any other, and its checkpoint holds both states."""
    from topoopt import TopoOptimizer

    def wrapped(model):
        return TopoOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), model, **OPTIONS)

    ends = []
    for kind in ("bare", "wrapped", "resumed"):
        model = bert()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2) if kind == "bare" else wrapped(model)
        folder = {"folder": "bare"} if kind == "bare" else {}
        trainer = make_trainer(
            None, model=model, trainer={"optimizers": (optimizer, None)}, save_strategy="steps", save_steps=3, **folder
        )
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3") if kind == "resumed" else None)
        ends.append(weights(trainer))
        if kind != "bare":
            assert optimizer.steps == STEPS
            assert optimizer.last is not None
            assert optimizer.last.step == (4 if kind == "wrapped" else 5)  # a resumed run measures at once: 3, 5
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])


def test_deepspeed_is_named_and_left_alone(make_trainer, caplog):
    """A stand-in with the names by which DeepSpeed's optimizers are known; training ends where it ends without topoopt."""
    kind = type("DeepSpeedZeroOptimizer", (torch.optim.SGD,), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})
    ends = []
    for callback in (None, TopoCallback(**OPTIONS)):
        model = bert()
        trainer = make_trainer(callback, model=model, trainer={"optimizers": (kind(model.parameters(), lr=1e-2), None)})
        trainer.train()
        ends.append(weights(trainer))
    assert equal(*ends)
    assert callback.topo is None
    assert callback.last is None
    assert "DeepSpeed steps flat partitions" in caplog.text
    assert not topo_rows(trainer)


def test_resume_without_topo_state(make_trainer, tmp_path, caplog):
    make_trainer(None, save_strategy="steps", save_steps=3).train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    assert not list(checkpoint.glob("topoopt*"))
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, save_strategy="steps", save_steps=1)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert steps_read(trainer) == [3.0, 4.0, 5.0]
    assert steps_measured(trainer) == [3.0, 5.0]
    assert_no_faults(callback)
    assert (tmp_path / "out" / "checkpoint-6" / "topoopt_0.pt").is_file()


def test_resume_with_a_damaged_topo_state(make_trainer, tmp_path, caplog):
    make_trainer(TopoCallback(**OPTIONS), save_strategy="steps", save_steps=3).train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    (checkpoint / "topoopt_0.pt").write_bytes(b"half a file")
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == STEPS
    assert steps_measured(trainer, after=3) == [3.0, 5.0]
    assert "resuming failed" in caplog.text


def test_resume_of_a_checkpoint_with_topo_state_without_the_callback(make_trainer, tmp_path):
    make_trainer(TopoCallback(**OPTIONS), save_strategy="steps", save_steps=3).train()
    trainer = make_trainer(None)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert trainer.state.global_step == STEPS


def test_callback_states_can_be_restored_by_trainer(make_trainer, tmp_path):
    make_trainer(TopoCallback(mode="preserve", **OPTIONS), save_strategy="steps", save_steps=3).train()
    trainer = make_trainer(TopoCallback(), restore_callback_states_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    (restored,) = [cb for cb in trainer.callback_handler.callbacks if isinstance(cb, TopoCallback)]
    assert restored.config.mode == "preserve"
    assert restored.last is not None
    assert restored.last.step == 5


def test_state_survives_json():
    from topoopt.control import Preserve

    callback = TopoCallback(mode=Preserve(target=0.5), every=7, record="x.jsonl")
    state = json.loads(json.dumps(callback.state()))
    again = TopoCallback.from_state(state)
    assert again.config == callback.config
    assert again.record == "x.jsonl"


def test_wandb_has_everything_once(make_trainer, tmp_path, wandb_offline, wandb_rows):
    """In rows of topoopt's own; Trainer's rows, written by its own callback, hold the bare run's keys."""
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback, report_to=["wandb"])
    trainer.train()
    wandb_offline.finish()
    wandb_offline.teardown()
    found, metrics, summary = wandb_rows(tmp_path)
    assert not [key for row in found for key in row if key.startswith("train/topo")]
    assert [row["train/global_step"] for row in found if "train/loss" in row] == list(range(1, STEPS + 1))
    own = {}
    for row in found:
        if "topo/step" in row:
            own[row["topo/step"]] = own.get(row["topo/step"], {}) | row
    assert sorted(own) == ALL
    for row in topo_rows(trainer):
        assert own[row["topo/step"]]["topo_details/r"] == pytest.approx(row["topo/proximity"])
    assert metrics["topo/loss"]["step_metric"] == "topo/step"
    assert any(row.get("topo_layers/table.nrows") for row in found)
    assert summary["topo/verdict_text"] == trainer.state.log_history[-1]["topo/verdict"]


@pytest.mark.parametrize("quiet", [False, True])
def test_the_console_ends_with_the_verdict_where_the_trainer_prints(make_trainer, capsys, quiet):
    callback = TopoCallback(**OPTIONS)
    trainer = make_trainer(callback)
    if quiet:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    trainer.train()
    said = f"topoopt: {callback.verdict.state}\n{callback.verdict}\n"
    assert capsys.readouterr().out.endswith(said) is not quiet


def test_the_console_has_five_numbers_and_the_last_row_the_verdict(make_trainer, tmp_path):
    shown = []

    class Console(PrinterCallback):
        """Sees what the printer sees."""

        def on_log(self, args, state, control, logs=None, **kwargs):
            shown.append({key for key in logs if key.startswith("topo/")})

    callback = TopoCallback(mode="hold", **OPTIONS)
    trainer = make_trainer(callback, disable_tqdm=False)  # no printer of Trainer's own
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Console)
    metrics = trainer.train().metrics
    assert all(len(keys) <= 5 and {"topo/step", "topo/proximity", "topo/lr_scale"} <= keys for keys in shown[:-1])
    assert len(shown) == STEPS + 1
    assert not shown[-1]
    assert not [key for key in metrics if key.startswith("topo/")]
    last = trainer.state.log_history[-1]
    assert last["topo/verdict"].count("\n") == 2
    assert last["topo/verdict"] == str(callback.topo.verdict)
    trainer.save_state()
    saved = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert saved["log_history"][-1]["topo/verdict"] == last["topo/verdict"]


def test_a_reading_and_an_earlier_measurement_in_one_row_name_their_steps(make_trainer):
    callback = TopoCallback(**{**OPTIONS, "every": 4})
    trainer = make_trainer(callback, logging_steps=3)
    trainer.train()
    first, second = topo_rows(trainer)
    assert (first["topo/measured_step"], first["topo/step"]) == (0.0, 2.0)
    assert (second["topo/measured_step"], second["topo/step"]) == (4.0, 5.0)
    read = {reading.step: reading for reading in callback.topo.readings}
    assert first["topo/proximity"] == read[2].r
    assert second["topo/loss"] == read[5].loss


def test_layerwise_dummies_are_left_alone(make_trainer, caplog):
    """Their optimizers step inside backward; what Trainer holds is a stand-in without the model's weights."""
    from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

    ends = []
    for callback in (None, TopoCallback(**OPTIONS)):
        model = bert()
        layers = {p: torch.optim.SGD([p], lr=1e-2) for p in model.parameters()}

        def step(p, layers=layers):
            layers[p].step()
            layers[p].zero_grad()

        for p in layers:
            p.register_post_accumulate_grad_hook(step)
        dummy = LayerWiseDummyOptimizer(optimizer_dict=layers, lr=1e-2)
        dummies = dummy, torch.optim.lr_scheduler.LambdaLR(dummy, lambda step: 1.0)
        trainer = make_trainer(callback, model=model, trainer={"optimizers": dummies}, max_grad_norm=0.0)
        trainer.train()
        ends.append(weights(trainer))
    assert equal(*ends)
    assert callback.topo is None
    assert "layer-wise optimizer" in caplog.text


def test_an_optimizer_that_is_measured_already_stays_its_owners(make_trainer, caplog):
    from topoopt import TopoOptimizer

    model = bert()
    optimizer = TopoOptimizer(torch.optim.AdamW(model.parameters(), lr=1e-2), model, **OPTIONS)
    callback = TopoCallback(every=1)
    trainer = make_trainer(callback, model=model, trainer={"optimizers": (optimizer, None)})
    trainer.train()
    assert callback.topo is optimizer
    assert optimizer.steps == STEPS  # still attached
    assert steps_measured(trainer) == [0.0, 2.0, 4.0]
    assert "measured already" in caplog.text
    optimizer.detach()


def test_a_broken_tracker_changes_nothing(make_trainer, caplog):
    def broken(measurement):
        raise OSError("the disk is full")

    bare = make_trainer(None)
    bare.train()
    callback = TopoCallback(sinks=[broken], **OPTIONS)
    trainer = make_trainer(callback)
    trainer.train()
    assert equal(weights(bare), weights(trainer))
    assert caplog.text.count("sink function failed") == 1  # logged once, then only counted
    assert callback.last is not None
    assert callback.topo is not None
    assert len(topo_rows(trainer)) == STEPS
