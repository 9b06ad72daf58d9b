r"""The effect of a low-rank update on a given matrix, predicted from the matrix's singular values and the update's alone.

For :math:`M = W + \sum_i\theta_ia_ib_i^\top` with directions that have nothing to do with W (n×m), let :math:`s_j` be the
singular values of W's bulk, 0 beyond min(n, m), and

.. math::
    \varphi(z) = \frac1n\sum_{j\le n}\frac z{z^2-s_j^2}, \qquad
    \tilde\varphi(z) = \frac1m\sum_{j\le m}\frac z{z^2-s_j^2}, \qquad D = \varphi\tilde\varphi.

An outlier is at :math:`D(z_i) = 1/\theta_i^2` if :math:`\theta_i > D(b^+)^{-1/2}` at the bulk's edge b; its singular vectors
overlap with the update's by (Benaych-Georges & Nadakuditi, *J. Multivariate Anal.* 111, 2012)

.. math::
    \langle a_i, \hat u_i\rangle^2 \to \frac{-2\varphi(z_i)}{\theta_i^2D'(z_i)}, \qquad
    \langle b_i, \hat v_i\rangle^2 \to \frac{-2\tilde\varphi(z_i)}{\theta_i^2D'(z_i)},

and with W's own by independent Gaussians of variance

.. math::
    p_{ij} = \frac{\theta_i^2}{(z_i^2-s_j^2)^2}
    \Big[\frac{z_i^2\langle b_i, \hat v_i\rangle^2}n + \frac{s_j^2\langle a_i, \hat u_i\rangle^2}m\Big].

With a bulk and nothing else the outlier is an intruder with probability
:math:`\prod_j\mathrm{erf}(\varepsilon/\sqrt{2p_{ij}})`. A trained matrix has spikes of its own, though, and an outlier that comes
near one repels it and mixes with it. So outliers and those spikes whose :math:`p_{ij}` is not small are taken as the states
of a small symmetric matrix: :math:`z_i` and :math:`s_j` on its diagonal, and between them couplings

.. math::
    \tfrac12\theta_i\big(\langle b_i,\hat v_i\rangle g + \langle a_i,\hat u_i\rangle g'\big), \qquad
    g \sim N(0, 1/n),\ g' \sim N(0, 1/m),

which to first order give :math:`p_{ij}` back. It is drawn and diagonalised. An outlier that keeps less than half of itself in
that is nowhere: among many spikes it dissolves. One that has passed all of them is moved by them as by a bulk, and D is then
taken over all :math:`s_j`.

At the edge of the bulk all this fails: whether there is an outlier, and which of the last bulk states it has mixed with, is a
matter of single states within :math:`N^{-1/3}` of the threshold. There, for one direction at a time, nothing is approximated
but the far end of the bulk: in the base's own singular vectors a Haar direction has Gaussian coordinates :math:`a_j, b_j`, and
the singular values z of the sum are the zeros of

.. math::
    \det\begin{pmatrix}A & C - 1/\theta\\ C - 1/\theta & B\end{pmatrix}, \quad
    A = \sum_j\frac{za_j^2}{z^2-s_j^2},\ B = \sum_j\frac{zb_j^2}{z^2-s_j^2},\ C = \sum_j\frac{s_ja_jb_j}{z^2-s_j^2}.

By the inertia of a Schur complement, beyond z lie as many of them as there are :math:`s_j` and positive eigenvalues of that
matrix, less one; so they are found by bisection. The largest :math:`s_j` are states of their own, the others share poles, with
:math:`\chi^2` weights.

All that counts outliers. At a high threshold, or among many leading vectors, most intruders are none, but base vectors that an
update has only mixed with one another; these are counted by `drawn_intruders`.
"""

from rmtjax.intruders.predict.drawn import drawn_intruders
from rmtjax.intruders.predict.edge import lone_intruders
from rmtjax.intruders.predict.prediction import Prediction, bulk_edge, check_question, predict, predict_beyond

__all__ = [
    "Prediction",
    "bulk_edge",
    "check_question",
    "drawn_intruders",
    "lone_intruders",
    "predict",
    "predict_beyond",
]
