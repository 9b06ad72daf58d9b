"""The experiments of the two papers, each a module to run: python -m experiments.alpha_lora.convergence"""
