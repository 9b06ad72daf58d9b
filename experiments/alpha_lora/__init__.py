"""The figures and tables of the α-LoRA paper."""
