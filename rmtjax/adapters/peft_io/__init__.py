"""Adapters from and to the folders of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

PEFT has no α. `save_peft` writes it in two ways: as `alpha.safetensors`, one vector (outputs,) for each scaled layer under the
layer's dotted path plus ".alpha", which `load_peft` reads; and, where asked, merged into a copy of the base in the folder
`base`, on which PEFT with the adapter alone gives the same answers; α lies beside that, too, as `merged_alpha.safetensors`, so
that nobody scales it twice. Layers that share one α are listed in the file's metadata
under `shared`, a JSON list of lists of paths.
"""

from rmtjax.adapters.peft_io.read import load_peft
from rmtjax.adapters.peft_io.write import save_peft

__all__ = ["load_peft", "save_peft"]
