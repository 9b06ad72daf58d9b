"""What given spectra tell: their ranks, their bulk and spikes, and whether they follow a law."""
