"""The network, its losses, metrics and optimizer."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "module": ["DictModule"],
        "losses": ["CriterionsComposition", "MeanLosses"],
        "class_losses": ["FocalLoss", "LogitAdjustedLoss", "OneVsAllLoss"],
        "metrics": ["BalancedAccuracy", "ClassCounts", "MetricsComposition"],
        "torchvision": ["torchvision_net"],
        "timm": ["timm_net"],
        "weight_files": ["read_weights"],
        "efficientnet": ["EfficientNetLite0", "efficientnet_lite0"],
        "muon": ["Muon"],
        "networks": ["SimpleCNN", "SimpleDenseNet", "TinyNet"],
        "optimizers": ["warmup_cosine"],
        "strategy": ["Strategy"],
        "surgery": ["head_names", "with_group_norm"],
    },
)
