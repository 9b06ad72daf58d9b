"""Analysis of given spectra: their ranks, their bulk and spikes, and whether they follow a law."""
