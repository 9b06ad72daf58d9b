"""Files of every kind, broken in every way: what reads them says so in one line, and changes nothing."""

import json
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmtjax.adapters import read_peft
from rmtjax.claims import load_claims
from rmtjax.datasets.amazon import load_domain
from rmtjax.datasets.glue import load_glue
from rmtjax.finetune.records import check_existing as _existing
from rmtjax.finetune.records import read_history as _history
from rmtjax.finetune.settings import Settings
from rmtjax.intruders import Pairs
from rmtjax.models import EncoderConfig, load_encoder
from rmtjax.models.tokenizer import Tokenizer
from rmtjax.montecarlo import grid, merge_results, open_result, run, to_records, write_result

from ..finetune.helpers import write_base, write_task
from ..intruders.helpers import matrix, write_adapter
from ..montecarlo.helpers import MEAN, TWO
from .helpers import broken_bytes, broken_json, many, survives

pytestmark = pytest.mark.fuzz


def files(folder):
    """All files below a folder, by name."""
    return {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}


@st.composite
def broken_folder(draw, folder, only=None):
    """Break one file of a folder: (name, new content, or None where it is to be gone)."""
    found = {name: file for name, file in files(folder).items() if only is None or only(name)}
    name = draw(st.sampled_from(sorted(found)))
    content = found[name].read_bytes()
    if draw(st.integers(0, 19)) == 0:
        return name, None
    return name, draw(broken_json(content) if name.endswith(".json") else broken_bytes(content))


class Broken:
    """A folder while one of its files is broken."""

    def __init__(self, folder, name, content):
        self.file, self.content = folder / name, content

    def __enter__(self):
        self.before = self.file.read_bytes()
        self.file.unlink() if self.content is None else self.file.write_bytes(self.content)

    def __exit__(self, *_):
        self.file.write_bytes(self.before)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A finished store and one that is not."""
    home = tmp_path_factory.mktemp("stores")
    run(TWO, trials=300, covariance=True, histogram=[-1.0, 0.0, 1.0], store=home / "whole")
    run(MEAN, grid(n=[1, 2, 3], shift=[0.0]), until_se=0.02, store=home / "part")
    shutil.rmtree(home / "part/result")
    shutil.rmtree(home / "part/provenance")
    assert open_result(home / "part").attrs["unfinished"] and "unfinished" not in open_result(home / "whole").attrs
    return home


@pytest.fixture(scope="module")
def reference(stores):
    """Return the content of the finished, undamaged store."""
    return open_result(stores / "whole")


@many(900)
@given(data=st.data())
def test_stores(stores, reference, data):
    which = data.draw(st.sampled_from(["whole", "part"]))
    name, content = data.draw(broken_folder(stores / which))
    with Broken(stores / which, name, content), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = survives(open_result, stores / which)
        if found is not None:
            survives(to_records, found)
    if found is not None and which == "whole":
        alike = found.equals if "unfinished" in found.attrs else found.identical  # its last file may be gone
        assert alike(reference)


@many(150)
@given(data=st.data())
def test_runs_that_go_on(stores, data, tmp_path_factory):
    """A run on a broken store ends in one line, or with the result of an undisturbed run: nothing wrong gets in."""
    name, content = data.draw(broken_folder(stores / "part", lambda n: not n.startswith("law/")))
    place = tmp_path_factory.mktemp("run") / "s"
    shutil.copytree(stores / "part", place)
    (place / name).unlink() if content is None else (place / name).write_bytes(content)
    before = {n: f.read_bytes() for n, f in files(place).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = survives(run, MEAN, grid(n=[1, 2, 3], shift=[0.0]), until_se=0.02, store=place)
    if found is None:
        assert {n: f.read_bytes() for n, f in files(place).items() if n in before} == before
    else:
        whole = run(MEAN, grid(n=[1, 2, 3], shift=[0.0]), until_se=0.02)
        assert found["mean"].equals(whole["mean"]) and found["trials"].equals(whole["trials"])
    shutil.rmtree(place.parent)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"))


@many(1500)
@given(data=st.data())
def test_configurations(base, data):
    content = data.draw(broken_json((base / "config.json").read_bytes()))
    with Broken(base, "config.json", content):
        survives(EncoderConfig.read, base)


@many(500)
@given(data=st.data())
def test_models(base, data):
    name, content = data.draw(broken_folder(base, lambda n: n in ("config.json", "model.safetensors")))
    with Broken(base, name, content):
        survives(load_encoder, base)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer with all its files."""
    folder = write_base(tmp_path_factory.mktemp("words"))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 32}')
    return folder


@many(700)
@given(data=st.data())
def test_tokenizers(words, data):
    name, content = data.draw(broken_folder(words, lambda n: n != "model.safetensors"))
    with Broken(words, name, content):
        read = survives(Tokenizer, words, EncoderConfig.read(words)) if name != "config.json" else None
        if read is not None:
            survives(read, ["alpha red"], ["unheard of"], 16)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    layers = {f"layer.{i}.query": (matrix(2, 12, i), matrix(10, 2, 9 + i)) for i in range(3)}
    return write_adapter(tmp_path_factory.mktemp("adapter") / "a", layers)


@many(1500)
@given(data=st.data())
def test_adapters(adapter, data):
    name, content = data.draw(broken_folder(adapter))
    with Broken(adapter, name, content):
        found = survives(read_peft, adapter)
    if found is not None:
        assert all(np.isfinite(layer.strength) for layer in found.layers.values())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two checkpoints of one model."""
    from ..intruders.helpers import write

    home = tmp_path_factory.mktemp("pairs")
    for k, name in enumerate(("base", "tuned")):
        write(home / name, {f"layer.{i}.query.weight": matrix(10, 12, 10 * i + k) for i in range(3)})
    return home


@many(800)
@given(data=st.data())
def test_checkpoints(checkpoints, data):
    which = data.draw(st.sampled_from(["base", "tuned"]))
    name, content = data.draw(broken_folder(checkpoints / which))

    def read():
        return [(one.name, type(one)) for one in Pairs(checkpoints / "base", checkpoints / "tuned")]

    with Broken(checkpoints / which, name, content):
        survives(read)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    home = tmp_path_factory.mktemp("glue")
    for name in ("MRPC", "STS-B", "MNLI"):
        write_task(home, train=6, dev=4, name=name)
    return home


@many(1500)
@given(data=st.data())
def test_tasks(glue, data):
    name, content = data.draw(broken_folder(glue))
    task = {"MRPC": "mrpc", "STS-B": "stsb", "MNLI": "mnli"}[name.split("/")[0]]
    with Broken(glue, name, content):
        for split in ("train", "dev", "dev_mismatched") if task == "mnli" else ("train", "dev"):
            survives(load_glue, task, glue, split)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    rows = ("1 0:2 17:1 4999:3", "-1 3:1 8:2", "1 5:1", "-1 0:1 2:2 9:1")
    (folder / "books_train.svmlight").write_text("".join(f"{row}\n" for row in rows))
    return folder


@many(800)
@given(data=st.data())
def test_reviews(reviews, data):
    name, content = data.draw(broken_folder(reviews))
    with Broken(reviews, name, content), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = survives(load_domain, reviews, "books", "train")
    if found is not None:
        assert found[0].shape[1] == 5000 and set(found[1]) <= {-1, 1}


LAW = b"""
import jax, jax.numpy as jnp
from rmtjax import Claim, positive, size
mean = Claim(name="mean", equation="E x = mu", source="mine", params=dict(n=size(), mu=positive()),
    law=lambda n, mu: mu + 0 * n, samplers=dict(direct=lambda key, n, mu: mu + jax.random.normal(key) / jnp.sqrt(n)),
    grid=dict(n=[1, 100], mu=[1.0, 2.0]))
"""


@many(300)
@given(content=broken_bytes(LAW), number=st.integers(0, 10**9))
def test_claims(content, number, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"law{number % 7}.py"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(load_claims, path)


@many(700)
@given(data=st.data())
def test_what_a_fine_tuning_has_left(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "left"
    folder.mkdir(exist_ok=True)
    settings = Settings(task="mrpc", data="data", model="model", rank=2, target_modules=("query",)).to_dict()
    identity = {"settings": settings, "steps": 10, "model": "ab12"}
    run_file = json.dumps({"identity": identity, "made_with": {}}).encode()
    lines = b"".join(json.dumps({"step": 5 * i, "epoch": i, "loss": 0.5}).encode() + b"\n" for i in (1, 2))
    (folder / "run.json").write_bytes(data.draw(broken_json(run_file)))
    survives(_existing, folder, identity, True)
    (folder / "metrics.jsonl").write_bytes(data.draw(broken_bytes(lines)))
    survives(_history, folder, 10, 5)


@many(200)
@given(data=st.data())
def test_merged_results(stores, data, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / "merged"
    if not place.exists():
        write_result(place, merge_results([run(MEAN, trials=50, seed=s) for s in (0, 1)]))
    name, content = data.draw(broken_folder(place))
    with Broken(place, name, content), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        survives(open_result, place)
