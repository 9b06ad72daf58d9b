"""The code of docs/tutorials/finetune_and_scan.md: `python finetune_and_scan.py [folder of MRPC]`.

Without a folder it makes up a small task of the same form, so that it runs anywhere in a minute.
"""

import sys
from pathlib import Path


def made_up(folder):
    """Write pairs of sentences that are or are not paraphrases, in the format of MRPC's files."""
    import numpy as np

    rng = np.random.default_rng(0)
    who = ["The minister", "A spokesman", "The company", "The court", "An analyst", "The bank"]
    did = [("said", "stated"), ("denied", "rejected"), ("announced", "made public"), ("confirmed", "verified")]
    what = ["the plan", "the report", "the merger", "the figures", "the decision", "the loss"]
    for name, count in (("train", 96), ("dev", 32)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for i in range(count):
            a, b = rng.integers(len(who)), rng.integers(len(what))
            verb, same = did[rng.integers(len(did))], i % 2
            other = verb[1] if same else did[rng.integers(len(did))][0] + " nothing about"
            lines.append(f"{same}\t{i}\t{i}\t{who[a]} {verb[0]} {what[b]} .\t{who[a]} {other} {what[b]} .")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


if len(sys.argv) > 1:
    data = Path(sys.argv[1])
else:
    data = Path("MRPC")
    data.mkdir(exist_ok=True)
    made_up(data)

# --8<-- [start:finetune]
from rmtjax.finetune import Settings, finetune

settings = Settings(
    task="mrpc",
    data=str(data),
    adapter="alpha-lora",
    rank=8,
    epochs=4,
    batch_size=8,
    alpha_every=4,
    learning_rate=1e-2,
    max_length=64,
)
# Into run/; if it is run again, it resumes, or is already done.
result = finetune(settings, "run", resume=True)
alpha = result["alpha"].values()
least, most = min(a["min"] for a in alpha), max(a["max"] for a in alpha)
print(f"accuracy {result['last']:.1%}, α from {least:.3f} to {most:.3f}")
# --8<-- [end:finetune]

# --8<-- [start:scan]
from rmtjax.intruders import scan

found = scan("minilm", "run")  # the packaged model that was tuned
for layer in found.layers:
    if layer.intruders:
        print(f"{layer.name}: {layer.intruders} found, {layer.predicted:.1f} expected")
print(f"{found.intruders} intruders in {len(found.layers)} layers")
# --8<-- [end:scan]

# --8<-- [start:mitigate]
from rmtjax.intruders import mitigate

mitigate("minilm", "run", "mitigated", mitigation_lambda=0.5)
print(f"{scan('minilm', 'mitigated').intruders} after mitigation")
# --8<-- [end:mitigate]

# --8<-- [start:guard]
import dataclasses

careful = dataclasses.replace(settings, guard=0.05)
guarded = finetune(careful, "guarded", resume=True)
found = scan("minilm", "guarded")
print(f"guarded: accuracy {guarded['last']:.1%}, intruders: {found.intruders}")
# --8<-- [end:guard]
