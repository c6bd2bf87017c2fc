"""Image sets, image files, and the pipeline from an image to the network: crop, pixels, batch."""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "module": ["ImageDataModule"],
        "image_folder": ["ImageFolderDataModule"],
        "shards": ["ShardDataModule"],
        "hugging_face": ["HuggingFaceDataModule"],
        "torchvision_set": ["TorchVisionDataModule", "torchvision_dataset"],
        "digits": ["write_digits"],
        "hymenoptera": ["download_hymenoptera"],
        "images": ["Images", "ImageSets", "class_counts"],
        "folder_images": ["FolderImages"],
        "folds": ["divide"],
        "sources": ["read_source"],
        "transforms": [
            "ImageTransform",
            "Normalize",
            "RandomErasing",
            "RandomHorizontalFlip",
            "RandomVerticalFlip",
            "image_uniforms",
        ],
        "mixing": ["CutMix", "MixUp"],
        "crops": ["CenterBox", "CropBox", "CropPolicy", "FittedBox", "PaddedCropBox", "RandomResizedBox", "WholeBox"],
        "dataset": ["ImageDataset"],
        "samplers": ["EvalBatchSampler", "TrainBatchSampler"],
        "loader": ["Loader"],
        "decode": ["BadImageError", "read_image"],
        "colour": ["Decoding"],
        "cache": ["Cache"],
    },
)
