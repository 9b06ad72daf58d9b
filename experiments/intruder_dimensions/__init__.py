"""The figures of Intruder Dimensions, and the study of the effect of fine-tuning on a spectrum."""
