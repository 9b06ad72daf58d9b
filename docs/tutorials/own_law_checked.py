"""The code of docs/tutorials/own_law.md, which runs as it stands."""

import dataclasses

from own_law import fourth

import rmtjax

# --8<-- [start:verify]
verdict = rmtjax.verify([fourth], trials=20_000)
for finding in verdict.findings:
    verb = "holds" if finding.holds else "is refuted"
    print(f"{finding.claim} {verb}, z = {finding.z:+.2f} at {finding.cell}")
# --8<-- [end:verify]
assert verdict.holds

# --8<-- [start:wrong]
forgotten = dataclasses.replace(
    fourth, name="no-corrections", equation=r"E \frac1N tr W^4 = 2", law=lambda N: 2.0 + 0 * N
)
refuted = rmtjax.verify([forgotten], trials=20_000)
worst = refuted.findings[0]
print(f"at N = {worst.cell['N']:g} the mean is {worst.mean:.3f} ± {worst.se:.3f}", end=", ")
print(f"the law says {worst.expected:.3f}")
# --8<-- [end:wrong]
assert not refuted.holds

# --8<-- [start:bias]
limit = dataclasses.replace(forgotten, name="in-the-limit", bias_bound=lambda N: 5 / N + 5 / N**2)
assert rmtjax.verify([limit], trials=20_000).holds
# --8<-- [end:bias]

# --8<-- [start:run]
cells = rmtjax.grid(N=[2, 4, 8, 16, 32])
result = rmtjax.run(fourth, cells, trials=20_000, seed=1, store="moment.zarr")
print(result[["mean", "se", "law", "z"]].squeeze(drop=True).to_dataframe())
# --8<-- [end:run]
assert abs(result["z"]).max() < 4.5

# --8<-- [start:precise]
precise = rmtjax.run(fourth, cells, until_se=0.01)
print(precise[["trials", "se"]].squeeze(drop=True).to_dataframe())
# --8<-- [end:precise]
assert precise["se"].max() <= 0.01
