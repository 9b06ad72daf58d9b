"""α-LoRA, Appendix D: three sources at once, along the optimal mixture and away from it in each coefficient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments._common import parse, record, worst_z
from rmtjax.ensembles.alpha_ftc.compressed import target_scalars
from rmtjax.laws import alpha_ftc as law
from rmtjax.montecarlo import Claim, grid, positive, real, run, size
from rmtjax.report.figures import colours, new_figure, points, style

# Three unit-norm classifiers: cosines 0.8, 0.4, −0.2 with μ_β, the parts orthogonal to it at cosine 0.3 with each other.
COSINES = np.array([0.8, 0.4, -0.2])
_OFF = np.sqrt(1 - COSINES**2)
GRAM = np.outer(COSINES, COSINES) + np.outer(_OFF, _OFF) * (0.3 + 0.7 * np.eye(3))
FIXED = dict(p=1e6, n=2.5e5, mu_beta=1.5, gamma=1.0)


def _outputs(scalars: law.MarginMoments, optimal: jnp.ndarray, step: jnp.ndarray) -> dict:
    """Return the accuracy at ``(1 + step)·a*``, and the loss from adding `step` to one coefficient of a*."""
    best, along = law.accuracy(scalars, optimal), law.accuracy(scalars, (1 + step)[..., None] * optimal)
    moved = {f"source {k + 1}": optimal + step[..., None] * jnp.eye(3)[k] for k in range(3)}
    return {"accuracy": along} | {name: best - law.accuracy(scalars, mixture) for name, mixture in moved.items()}


def _limit(p, n, mu_beta, gamma):
    mu_beta = jnp.asarray(mu_beta)
    source = law.SourceStatistics(jnp.broadcast_to(GRAM, (*mu_beta.shape, 3, 3)), mu_beta[..., None] * COSINES)
    return law.scalars(gamma, p / n, mu_beta, source)


def _sample(key, p, n, mu_beta, gamma, step):
    optimal = law.optimal_alpha(_limit(p, n, mu_beta, gamma))
    drawn = target_scalars(
        key, p, n, gamma, mu_beta, law.SourceStatistics(jnp.asarray(GRAM), mu_beta * jnp.asarray(COSINES))
    )
    return _outputs(drawn, optimal, step)


# All mixtures are judged on the same draw, so differences are known far better than either accuracy.
mixtures = Claim(
    name="three-sources",
    equation=r"\mathrm{acc}(a^\star) - \mathrm{acc}(a^\star + t\,e_k) \geq 0",
    source="α-LoRA, Appendix D.3",
    params=dict(
        p=size("dimension"), n=size("target samples"), mu_beta=positive("‖μ_β‖"), gamma=positive(), step=real()
    ),
    law=lambda p, n, mu_beta, gamma, step: _outputs(
        _limit(p, n, mu_beta, gamma), law.optimal_alpha(_limit(p, n, mu_beta, gamma)), step
    ),
    samplers=dict(compressed=_sample),
    grid=grid(**FIXED, step=np.linspace(-2, 2, 17)),
    within=("step",),
)


def main(argv: list[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv, __file__, __doc__, trials=10_000)
    result = run(mixtures, trials=args.trials, seed=args.seed)
    along, around = result.sel(output="accuracy"), result.drop_sel(output="accuracy")
    steps = np.linspace(-2, 2, 201)
    curves = mixtures.predict(grid(**FIXED, step=steps))
    with jax.enable_x64(True):
        limit = _limit(**FIXED)
        optimal, highest = np.asarray(law.optimal_alpha(limit)), float(law.best_accuracy(limit))
        each = law.SourceStatistics(np.ones(3), FIXED["mu_beta"] * COSINES)
        alone = float(law.best_accuracy(law.scalars(FIXED["gamma"], 4.0, FIXED["mu_beta"], each))[0])

    with style():
        figure, (left, right) = new_figure(1, 2, size=(9.6, 4.3))
        blue = colours(1)[0]
        left.plot(1 + steps, 100 * curves["accuracy"], color=blue, label="law, all three sources")
        points(left, 1 + along["step"], 100 * along["mean"], 100 * along["se"], blue, label="Monte Carlo, ± 2 s.e.")
        left.axhline(100 * alone, color="#8a8a8a", ls="--", lw=1, label="best with source 1 alone")
        left.set(xlabel="scale of the optimal mixture (1 is the optimum)", ylabel="test accuracy, %")
        left.set_title(
            "Along the optimal mixture a* = (" + ", ".join(f"{a:.2f}" for a in optimal).replace("-", "−") + ")"
        )
        left.legend(loc="lower right")
        for k, colour in enumerate(colours(3)):
            name = f"source {k + 1}"
            one = around.sel(output=name)
            right.plot(steps, 100 * curves[name], color=colour, label=f"{name}, cos = {COSINES[k]:g}".replace("-", "−"))
            points(right, one["step"], 100 * one["mean"], 100 * one["se"], colour)
        right.set(xlabel="step away from a* in one coefficient", ylabel="accuracy lost, percentage points")
        right.set_title("What leaving a* costs, in any direction")
        right.legend(loc="upper center")
        figure.suptitle(
            "Three sources:  p = 10⁶, n = p/4, ‖w̃‖ = 1, ‖μ$_β$‖ = 1.5, γ = 1", x=0.01, ha="left", fontsize=10.5
        )
    left_out = around.sel(step=around["step"] != 0)
    numbers = {
        "optimal_mixture": optimal, "best_accuracy": highest,
        "best_accuracy_with_source_1_alone": alone,
        "least_loss": float(left_out["mean"].min()),
        "least_loss_in_standard_errors": float((left_out["mean"] / left_out["se"]).min()),
        "worst_z": worst_z(result),
    }  # fmt: skip
    record(args, figure, numbers, {"mixtures": result})


if __name__ == "__main__":
    main()
