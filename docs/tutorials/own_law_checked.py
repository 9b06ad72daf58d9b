"""The code of docs/tutorials/own_law.md, which runs as it stands."""

import dataclasses

from own_law import fourth

import rmtjax

# --8<-- [start:verify]
verdict = rmtjax.verify([fourth], trials=20_000)
for finding in verdict.findings:
    print(finding.claim, "holds" if finding.holds else "is refuted", f"z = {finding.z:+.2f}", finding.cell)
# --8<-- [end:verify]
assert verdict.holds

# --8<-- [start:wrong]
forgotten = dataclasses.replace(
    fourth, name="no-corrections", equation=r"E \frac1N tr W^4 = 2", law=lambda N: 2.0 + 0 * N
)
refuted = rmtjax.verify([forgotten], trials=20_000)
worst = refuted.findings[0]
print(f"at N = {worst.cell['N']:g} the mean is {worst.mean:.3f} ± {worst.se:.3f}, the law says {worst.expected:.3f}")
# --8<-- [end:wrong]
assert not refuted.holds

# --8<-- [start:bias]
limit = dataclasses.replace(forgotten, name="in-the-limit", bias=lambda N: 5 / N + 5 / N**2)
assert rmtjax.verify([limit], trials=20_000).holds
# --8<-- [end:bias]

# --8<-- [start:run]
result = rmtjax.run(fourth, rmtjax.grid(N=[2, 4, 8, 16, 32]), trials=20_000, seed=1, store="moment.zarr")
print(result["mean"].values, result["se"].values, result["z"].values)
# --8<-- [end:run]
assert abs(result["z"]).max() < 4.5

# --8<-- [start:precise]
precise = rmtjax.run(fourth, rmtjax.grid(N=[2, 4, 8, 16, 32]), until_se=0.01)
print(dict(zip(precise["N"].values.tolist(), precise["trials"].values.tolist(), strict=True)))
# --8<-- [end:precise]
assert precise["se"].max() <= 0.01
