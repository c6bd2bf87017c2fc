"""Files for other software: ONNX with the preprocessing inside, `torch.export`, bundles; and the proof that they answer
as their checkpoint does."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {"proven": ["ProvenExport", "Terms"], "proof": ["Case", "Proof", "compare"], "bundle": ["write_bundle"]},
)
