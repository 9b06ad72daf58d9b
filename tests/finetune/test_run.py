"""Fine-tuning from files to files."""

import itertools
import json

import jax
import numpy as np
import optax
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from rmtjax import InputError
from rmtjax._files import LOCK
from rmtjax.adapters import load_peft
from rmtjax.adapters.layers import adapted_layers
from rmtjax.datasets import glue
from rmtjax.finetune import finetune
from rmtjax.finetune.checkpoints import Checkpoints
from rmtjax.finetune.run import Run, predict
from rmtjax.intruders import intruder_limits
from rmtjax.models import load_classifier
from rmtjax.report import finetune as report
from tests.adapters.helpers import with_peft

from .helpers import Shared, files, settings, write_task


class Watched:
    """The record of a run: its `Run`, the losses of its steps, and its final state."""

    def __init__(self, chosen, out, **options):
        self.losses, self.out = [], out
        self.result = finetune(chosen, out, announce=self.watch, **options)
        if out is not None:
            checkpoints = Checkpoints(out / "checkpoints")
            self.state = checkpoints.latest(self.run.trainer.start)
            checkpoints.close()

    def watch(self, run):
        self.run, self.compiled = run, run.trainer.step
        self.start = jax.tree.map(np.array, run.trainer.start)
        run.trainer.step = self.step

    def step(self, *args):
        state, loss = self.compiled(*args)
        self.losses.append(loss)
        return state, loss

    def logits(self):
        """Of the development set, by the trained model."""
        return predict(self.run.trainer, self.state, self.run.layout, self.run.dev["dev"])


def logits_of(model, data):
    """Of any model, one padded batch at once."""
    n = data.lengths().max()
    ids, types = (np.stack([np.pad(x, (0, n - len(x))) for x in xs]) for xs in (data.ids, data.types))
    mask = (np.arange(n) < data.lengths()[:, None]).astype(np.int32)
    return np.asarray(jax.jit(lambda *x: model(*x))(ids, mask, types))


def torch_logits(model, data):
    torch = pytest.importorskip("torch")
    n = data.lengths().max()
    ids, types = (torch.tensor(np.stack([np.pad(x, (0, n - len(x))) for x in xs])) for xs in (data.ids, data.types))
    mask = torch.arange(int(n)) < torch.tensor(data.lengths())[:, None]
    with torch.no_grad():
        return model.eval()(
            input_ids=ids.long(), token_type_ids=types.long(), attention_mask=mask.long()
        ).logits.numpy()


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return write_task(tmp_path_factory.mktemp("larger"), 120, 60)


@pytest.fixture(scope="module", params=["lora", "alpha-lora"])
def learned(request, base, larger, tmp_path_factory):
    """A run that has learnt the toy task. 120 examples, of which α keeps 24, in batches of 8 and a ragged last one."""
    more = {"alpha_every": 4} if request.param == "alpha-lora" else {}
    chosen = settings(base, larger, adapter=request.param, rank=4, epochs=8, batch_size=9, learning_rate=0.02, **more)
    return Watched(chosen, tmp_path_factory.mktemp(request.param) / "out")


@pytest.mark.thorough
def test_a_rule_is_learnt(learned):
    history, alpha = learned.result["history"], learned.run.settings.alpha
    assert history[-1]["accuracy"] > 0.9 > history[0]["accuracy"]
    assert history[-1]["loss"] < 0.3 < history[0]["loss"]
    assert learned.run.batches.steps_per_epoch == (11 if alpha else 14)  # 96 of 9, and 120 of 9: both ragged
    assert len(learned.losses) == learned.run.batches.steps
    # One program for all steps, one for all evaluations.
    assert learned.compiled._cache_size() == learned.run.trainer.logits._cache_size() == 1


@pytest.mark.thorough
def test_history_is_what_was_measured(learned):
    run, history = learned.run, learned.result["history"]
    per_epoch = run.batches.steps_per_epoch
    losses = np.array(learned.losses).reshape(8, per_epoch)
    assert [line["loss"] for line in history] == pytest.approx(losses.mean(1), rel=1e-5)
    assert [line["epoch"] for line in history] == list(range(1, 9))
    assert [line["step"] for line in history] == [per_epoch * k for k in range(1, 9)]
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(history))
    labels = run.dev["dev"].labels
    assert history[-1].items() >= glue.score("mrpc", learned.logits().argmax(-1), labels).items()
    alphas = run.alphas(learned.state)
    if not run.settings.alpha:
        assert not alphas and learned.result["alpha"] == {} and "alpha_mean" not in history[0]
        return
    assert set(alphas) == {f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "value")}
    values = np.concatenate(list(alphas.values()))
    line = history[-1]
    assert line["alpha_mean"] == pytest.approx(values.mean()) and np.ptp(values) > 0.01
    assert (line["alpha_min"], line["alpha_max"]) == (values.min(), values.max())
    for name, x in alphas.items():
        wanted = {"mean": x.mean(), "sd": x.std(), "min": x.min(), "max": x.max()}
        assert learned.result["alpha"][name] == pytest.approx(wanted)


@pytest.mark.first(1)
def test_files_of_a_run(learned):
    out, result = learned.out, learned.result
    alpha = learned.run.settings.alpha
    assert {p.name for p in out.iterdir()} == {
        "run.json", "metrics.jsonl", "result.json", "curves.png", "adapter", "checkpoints", LOCK,
    }  # fmt: skip
    assert {p.name for p in (out / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", *(("alpha.safetensors", "base") if alpha else ()),
    }  # fmt: skip
    assert [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == result["history"]
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert result["settings"] == learned.run.settings.to_dict()
    assert result["settings"]["adapter"] == "lora" and result["settings"]["alpha"] is alpha
    assert result["examples"] == {"train": 120, "dev": 60}
    assert result["finished"] is True and result["steps"] == len(learned.losses)
    assert result["headline"] == "accuracy" and result["last"] == result["history"][-1]["accuracy"]
    best = max(line["accuracy"] for line in result["history"])
    assert result["best"] == best == result["history"][result["best_epoch"] - 1]["accuracy"]
    # q and v of one layer at rank 4, a head of 16 × 2 + 2, and α for both.
    assert result["parameters"]["trainable"] == 2 * 4 * 32 + 34 + 32 * alpha
    assert result["steps_per_second"] > 0 and result["seconds"] >= result["history"][-1]["seconds"]
    assert set(result["made_with"]) == {"device", "versions", "git_commit"}
    assert all(name in result["made_with"]["versions"] for name in ("jax ", "flax ", "optax ", "tokenizers "))


@pytest.mark.first(1)
def test_the_adapter_is_the_trained_model(learned):
    trained = learned.logits()
    model = with_peft(load_classifier(learned.run.folder, 2)[0], learned.out / "adapter")
    assert logits_of(model, learned.run.dev["dev"]) == pytest.approx(trained, rel=1e-4, abs=1e-4)
    bare = load_classifier(learned.run.folder, 2)[0]
    assert np.abs(logits_of(bare, learned.run.dev["dev"]) - trained).max() > 1


@pytest.mark.first(1)
def test_peft_reads_the_adapter(learned):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    adapter = learned.out / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(adapter / "base" if learned.run.settings.alpha else learned.run.folder)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = peft.PeftModel.from_pretrained(plain, adapter)
    assert torch_logits(model, learned.run.dev["dev"]) == pytest.approx(learned.logits(), rel=1e-4, abs=1e-4)


def test_how_a_run_is_shown(learned, capsys):
    run, result, alpha = learned.run, learned.result, learned.run.settings.alpha
    heading = str(run).splitlines()
    assert (
        heading[0]
        == f"mrpc in {run.settings.data}: 120 to train on, 60 in dev; lengths {', '.join(map(str, run.layout.lengths))}"
    )
    assert heading[1].endswith("; new: classifier.bias, classifier.weight")
    assert f"{run.count.trainable} trainable of {run.count.total:,}" in heading[1]
    assert heading[2] == f"8 epochs of {11 if alpha else 14} steps of 9 on 1 cpu device"
    Console(width=200).print(report.table(result))
    shown = capsys.readouterr().out
    assert ("α mean" in shown) is alpha and "accuracy" in shown and "f1" in shown
    line = result["history"][-1]
    row = next(x for x in shown.splitlines() if x.split()[:1] == ["8"]).split()
    scores = [f"{100 * line[name]:.2f}" for name in ("accuracy", "f1")]
    assert row[1:5] == [str(line["step"]), f"{line['loss']:.4f}", *scores]
    assert report.summary(result).startswith(
        f"accuracy {100 * result['last']:.2f} (best {100 * result['best']:.2f} in epoch {result['best_epoch']}), "
    )
    assert report.files(learned.out) == ["adapter", "metrics.jsonl", "curves.png", "result.json", "checkpoints"]


# --- every method, task and precision -----------------------------------------------------------------------------


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("method", "alpha"),
    [
        ("rslora", False),
        ("dora", True),
        ("orthogonal", False),
        ("spectral-additive", False),
        ("spectral-rotational", False),
        ("full", True),
    ],
)
def test_every_method_runs_and_leaves_its_model(method, alpha, base, data, tmp_path):
    more = {"alpha_every": 2} if alpha else {}
    if method in ("rslora", "dora", "orthogonal"):
        more["lora_alpha"] = 3.0
    chosen = settings(base, data, adapter=method, alpha=alpha, epochs=1, max_length=16, **more)
    watched = Watched(chosen, tmp_path / "out")
    weights = watched.state.weights
    still = [name for name, x in watched.start.weights.items() if np.array_equal(x, weights[name])]
    assert not still
    assert all(not np.array_equal(x, watched.state.alpha[name]) for name, x in watched.start.alpha.items())
    assert bool(watched.start.alpha) == alpha
    trained, dev = watched.logits(), watched.run.dev["dev"]
    if method == "full":
        model = load_classifier(tmp_path / "out/model", 2)[0]
        # Beside α a kernel is frozen, and has a Δ that trains in its place.
        delta = {name for name in weights if name.endswith("update.delta")}
        assert {name.replace("update.delta", "base.kernel") for name in delta} == set(watched.run.trainer.frozen)
        assert len(delta) == len(watched.start.alpha) == 2
    else:
        model = with_peft(load_classifier(base, 2)[0], tmp_path / "out/adapter")
    assert logits_of(model, dev) == pytest.approx(trained, rel=1e-4, abs=1e-4)
    if method == "orthogonal":
        tensors = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
        for name in ("query", "value"):
            path = f"base_model.model.bert.encoder.layer.0.attention.self.{name}.lora_"
            a, b = tensors[path + "A.weight"], tensors[path + "B.weight"]
            assert a @ a.T == pytest.approx(np.eye(2), abs=2e-6)
            assert b.T @ b == pytest.approx((3 / 2) ** 2 * np.eye(2), abs=5e-6)  # each singular value is a/r


@pytest.fixture(scope="module")
def full(base, data, tmp_path_factory):
    return Watched(
        settings(base, data, adapter="full", epochs=1, max_length=16), tmp_path_factory.mktemp("full") / "out"
    )


@pytest.mark.thorough
def test_full_trains_everything(full, base):
    folder = full.out / "model"
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", "vocab.txt"}
    before, after = (load_file(place / "model.safetensors") for place in (base, folder))
    assert set(after) == {*(f"bert.{name}" for name in before), "classifier.weight", "classifier.bias"}
    assert not [name for name, x in before.items() if np.array_equal(x, after[f"bert.{name}"])]
    assert full.run.count.trainable == full.run.count.total == sum(x.size for x in after.values())
    assert full.run.trainer.frozen == {}
    model, loaded = load_classifier(folder, 2)
    assert not loaded.new and not loaded.unused
    assert logits_of(model, full.run.dev["dev"]) == pytest.approx(full.logits(), rel=1e-4, abs=1e-4)


@pytest.mark.thorough
def test_transformers_reads_a_full_model(full, data):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(full.out / "model")
    assert model.config.id2label == {0: "not_equivalent", 1: "equivalent"}
    assert torch_logits(model, full.run.dev["dev"]) == pytest.approx(full.logits(), rel=1e-4, abs=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(full.out / "model")
    examples = glue.load_glue("mrpc", data, "dev")
    found = tokenizer(examples.first[0], examples.second[0], truncation=True, max_length=16)["input_ids"]
    assert found == full.run.dev["dev"].ids[0].tolist()


@pytest.mark.thorough
def test_a_regression(base, tmp_path):
    data = write_task(tmp_path, 60, 30, name="STS-B")
    chosen = settings(
        base, data, task="sts-b", adapter="lora", rank=4, epochs=12, batch_size=8, learning_rate=0.03, dropout=False,
        max_length=16,
    )  # fmt: skip
    watched = Watched(chosen, tmp_path / "out")
    result = watched.result
    assert watched.run.train.labels.dtype == np.float32
    assert result["headline"] == "pearson" and result["last"] == result["history"][-1]["pearson"] > 0.8
    assert "spearman" in result["history"][0]
    values = watched.logits()[:, 0]
    wanted = np.corrcoef(values, watched.run.dev["dev"].labels)[0, 1]
    assert result["last"] == pytest.approx(wanted, abs=1e-5)
    assert np.mean((values - watched.run.dev["dev"].labels) ** 2) < 1.5  # of a variance of 2.25


@pytest.mark.thorough
def test_two_development_sets_and_three_classes(base, tmp_path):
    data = write_task(tmp_path, 20, 8, name="MNLI")
    result = finetune(settings(base, data, task="MNLI", adapter="lora", epochs=1, max_length=16), tmp_path / "out")
    assert result["settings"]["task"] == "mnli"
    assert result["examples"] == {"train": 20, "dev_matched": 8, "dev_mismatched": 10}
    assert {"accuracy", "accuracy_mismatched"} <= set(result["history"][0])
    assert round(10 * result["history"][0]["accuracy_mismatched"], 6).is_integer()
    tensors = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert tensors["base_model.model.classifier.weight"].shape == (3, 16)


@pytest.mark.thorough
def test_half_precision_remat_and_shared_alpha(base, data, tmp_path):
    chosen = settings(
        base, data, adapter="lora", alpha=True, alpha_share="self", alpha_batch_size=2, alpha_optimizer="adamw", epochs=1,
        dtype="bfloat16", remat=True, alpha_every=1, target_modules=("query", "key"), val_split=1.0, max_length=16,
    )  # fmt: skip
    watched = Watched(chosen, tmp_path / "out")
    assert len(watched.losses) == 6 and all(np.isfinite(x) for x in watched.losses)
    assert {x.dtype for x in watched.state.weights.values()} == {np.dtype("float32")}
    (vector,) = watched.run.alphas(watched.state).values()  # one for both
    assert vector.shape == (16,) and np.ptp(vector) > 0
    model = with_peft(load_classifier(base, 2)[0], tmp_path / "out/adapter")
    assert logits_of(model, watched.run.dev["dev"]) == pytest.approx(watched.logits(), abs=0.15)


# --- the rest -----------------------------------------------------------------------------------------------------


SHARED = Shared()


@pytest.mark.thorough
def test_without_a_folder_nothing_is_written(base, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = finetune(settings(base, data, adapter="lora", epochs=2, max_length=16), announce=SHARED)
    assert result["finished"] and len(result["history"]) == 2
    assert not files(tmp_path)


@pytest.mark.first(1)
@pytest.mark.parametrize("at", [2, 12])
def test_a_loss_that_is_not_finite_ends_the_run(at, base, data, tmp_path):
    """Also in the very last step, and no line of a file holds it."""

    def watch(run):
        SHARED(run)
        step, count = run.trainer.step, [0]
        assert run.batches.steps == 12

        def broken(*args):
            state, loss = step(*args)
            count[0] += 1
            bad = count[0] == at
            return (state._replace(loss=state.loss + np.nan), loss + np.nan) if bad else (state, loss)

        run.trainer.step = broken

    with pytest.raises(InputError, match=r"learning_rate = 0.01: the loss is not finite by step (3|12); try a smaller"):
        finetune(settings(base, data, adapter="lora", epochs=2, max_length=16), tmp_path / "out", announce=watch)
    metrics = tmp_path / "out/metrics.jsonl"
    lines = [json.loads(x) for x in metrics.read_text().splitlines()] if metrics.exists() else []
    assert [line["step"] for line in lines] == ([] if at == 2 else [6])
    assert not (tmp_path / "out/result.json").exists()


@pytest.mark.thorough
def test_a_guarded_run_stays_below_every_layers_limit(base, data, tmp_path):
    """Steps that would go far beyond: free they do, guarded they end at the limit."""
    strengths = {}
    for guard in (None, 0.05):
        out = tmp_path / str(guard)
        finetune(settings(base, data, adapter="lora", rank=2, epochs=2, learning_rate=1.0, guard=guard), out)
        model, _ = load_classifier(base, 2)
        load_peft(model, out / "adapter")
        limits = intruder_limits(model, probability=0.05)
        layers = adapted_layers(model)
        assert set(limits) == set(layers)
        strengths[guard] = [float(layers[path].update.norm()) / limit for path, limit in limits.items()]
    assert max(strengths[0.05]) < 1.001 and max(strengths[None]) > 1.5


def test_a_guard_counts_the_vectors_and_cosines_it_is_told(base, data, monkeypatch):
    asked = {}
    monkeypatch.setattr("rmtjax.finetune.run.intruder_limits", lambda model, **options: asked.update(options) or {})
    monkeypatch.setattr("rmtjax.finetune.run.project_spectral_norm", lambda model, limits: optax.identity())
    Run(settings(base, data, adapter="lora", guard=0.1, guard_top_k=4, guard_epsilon=0.3))
    assert asked == {"probability": 0.1, "top_k": 4, "threshold_epsilon": 0.3}


def test_a_limit_keeps_so_many_examples_of_each_set(base, data):
    whole, some, others = (
        Run(settings(base, data, adapter="lora", max_samples=n, seed=s)) for n, s in ((None, 0), (8, 0), (8, 1))
    )
    assert [len(x.labels) for x in (some.train, some.dev["dev"])] == [8, 8]

    def texts(run):
        return [tuple(i) for i in run.train.ids]

    at = [texts(whole).index(text) for text in texts(some)]
    assert at == sorted(set(at)) and texts(some) != texts(others)
    assert (
        Run(settings(base, data, adapter="lora", max_samples=1_000)).train.labels.tolist()
        == whole.train.labels.tolist()
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_samples": 0}, r"max_samples = 0: must be a whole number ≥ 1"),
        ({"guard_top_k": 0}, r"guard_top_k = 0: must be a whole number ≥ 1"),
        ({"guard_epsilon": 1.0}, r"guard_epsilon = 1.0: must be a finite number in \(0, 1\)"),
        ({"guard": 0.0}, r"guard = 0.0: must be a finite number in \(0, 1\)"),
        ({"guard": 1.0}, r"guard = 1.0: must be a finite number in \(0, 1\)"),
        ({"guard": 0.05, "adapter": "full"}, r"guard = 0.05: needs an adapter"),
    ],
)
def test_guards_that_cannot_be(changes, says, base, data):
    with pytest.raises(InputError, match=says):
        settings(base, data, **changes).checked()
