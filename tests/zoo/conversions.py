"""Write `rmtjax/checkpoints/conversions.json` from what the installed `transformers` says: python -m tests.zoo.conversions

What a file calls a weight and what the model in memory calls it differ in many families. `transformers.conversion_mapping` lists
the renamings for each type of model, or class of a part; these are the facts that are kept here, one rule a renaming.
"""

import json
import re
from pathlib import Path

TABLE = Path(__file__).parents[2] / "rmtjax/checkpoints/conversions.json"


def _operation(operation) -> str:
    """Return an operation on tensors in short: its name and the dimensions that it works on."""
    dimensions = [str(getattr(operation, name)) for name in ("dim", "dim0", "dim1") if hasattr(operation, name)]
    return " ".join([type(operation).__name__, *dimensions])


def rule_of(transform) -> list | None:
    """Return [pattern, replacement names, operations]; None for the few rules whose renaming is a program of its own."""
    from transformers import core_model_loading as loading

    if type(transform).rename_source_key not in (loading.WeightTransform.rename_source_key,):
        return None
    operations = [_operation(operation) for operation in getattr(transform, "operations", [])]
    return [transform.compiled_sources.pattern, list(transform.target_patterns), operations]


def table() -> dict:
    """Return the whole table: rules by type of model or class of a part, classes and backbones by type, and rules left out."""
    import transformers
    from transformers import conversion_mapping as mapping
    from transformers.models.auto import modeling_auto

    rules, omitted = {}, {}
    for identifier in sorted(mapping._build_checkpoint_conversion_mapping()):
        made = [rule_of(transform) for transform in mapping.get_checkpoint_conversion_mapping(identifier)]
        rules[identifier] = [rule for rule in made if rule is not None]
        if len(rules[identifier]) < len(made):
            omitted[identifier] = len(made) - len(rules[identifier])
    alike, seen = {}, {}
    for identifier, value in rules.items():
        first = seen.setdefault(json.dumps(value), identifier)
        if first != identifier:
            alike[identifier] = first
    classes = {kind: name for kind, name in modeling_auto.MODEL_MAPPING_NAMES.items() if isinstance(name, str)}
    classes = {kind: name for kind, name in sorted(classes.items()) if name in rules}
    backbones = {
        kind: name for kind, name in sorted(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES.items()) if name in rules
    }
    with_prefix = sorted({*classes.values(), *backbones.values()})
    prefixes = {name: getattr(transformers, name).base_model_prefix for name in with_prefix}
    return {
        "source": f"transformers {transformers.__version__}, conversion_mapping (Apache-2.0)",
        "rules": {identifier: value for identifier, value in rules.items() if identifier not in alike},
        "alike": alike,
        "classes": classes,
        "backbones": backbones,
        "prefixes": {name: prefix for name, prefix in prefixes.items() if prefix},
        "omitted": omitted,
    }


def written(table: dict) -> str:
    """Return the table as text, one line per rule."""
    text = json.dumps(table, indent=1, ensure_ascii=False, sort_keys=True)
    # Inner lists stay on the line that they begin on.
    return re.sub(r"\n {4,}|\n {3}(?=[\]}])", " ", text).replace("[ ", "[").replace(" ]", "]") + "\n"


if __name__ == "__main__":
    TABLE.write_text(written(table()), encoding="utf-8")
    print(TABLE, f"{TABLE.stat().st_size:,} bytes")
