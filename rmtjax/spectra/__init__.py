"""Analysis of given spectra: ranks, bulk and spikes, and tests against a law."""
