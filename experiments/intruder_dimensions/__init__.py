"""The figures of Intruder Dimensions, and the study of what fine-tuning does to a spectrum."""
