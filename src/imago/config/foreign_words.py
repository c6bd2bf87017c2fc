"""Settings of other trainers, and the settings of Imago that they mean: one table.

The words are those of Ultralytics, timm, fastai, Keras, Hugging Face's Trainer, lightning-hydra-template, ml_core,
nnClassification and plain argparse scripts. Messages read it, and docs/coming_from.md is written from it. To teach
Imago a word, add it to a row of `ROWS`, or of `REMARKS` in foreign_remarks.py where there is nothing to type; the tests
compose what each row offers.
"""

from collections.abc import Sequence

from imago.config.foreign_remarks import LEAVE, REMARKS
from imago.config.hints import (
    AMP,
    Hint,
    Translate,
    augment_hint,
    batch_hint,
    cache_hint,
    clip_hint,
    dataset_hint,
    device_hint,
    devices_hint,
    dropout_hint,
    evaluate_hint,
    freeze_hint,
    gpus_hint,
    image_size_hint,
    logger_hint,
    model_hint,
    monitor_hint,
    optimizer_hint,
    precision_hint,
    pretrained_hint,
    resume_hint,
    scheduler_hint,
    switch,
    types,
    types_path,
)
from imago.config.invocation import override_key, override_value

ROWS: tuple[tuple[str, str, Translate], ...] = (  # names, an example of a value, what to type
    # duration
    (
        "epochs epoch n_epoch n_epochs num_epochs max_epochs num_train_epochs total_epochs",
        "5",
        types("trainer.max_epochs={}"),
    ),
    ("max_steps num_steps steps total_steps max_iters", "100", types("trainer.max_steps={}")),
    ("time max_time", "00:01:00:00", types("trainer.max_time='{}'", note="The form is DD:HH:MM:SS.")),
    ("patience early_stopping_patience early_stop_patience", "5", types("callbacks.early_stopping.patience={}")),
    (
        "early_stopping early_stop",
        "false",
        switch(Hint(note=f"{LEAVE}: it is on by default."), "callbacks.early_stopping=null"),
    ),
    ("fast_dev_run dev_run dry_run debug_mode", "true", switch("debug=fdr", Hint(note=f"{LEAVE}."))),
    # images and batches
    ("imgsz img_size image_size imsize input_size input_shape target_size img resolution size", "64", image_size_hint),
    ("batch bs batch_size batchsize train_batch_size b", "64", batch_hint),
    (
        "per_device_train_batch_size per_gpu_train_batch_size",
        "64",
        types("data.batch_size={}", note="It counts the images of all devices together."),
    ),
    ("workers num_workers nw n_workers dataloader_num_workers j", "4", types("data.num_workers={}")),
    ("pin_mem dataloader_pin_memory", "true", types("data.pin_memory={}")),
    (
        "val_split validation_split valid_pct val_pct valid_ratio val_size train_val_split",
        "0.2",
        types("data.val_ratio={}"),
    ),
    (
        "fraction",
        "0.5",
        types("trainer.limit_train_batches={}", note="It is a fraction of the batches, or their number."),
    ),
    (
        "augment augmentation aug transforms train_transforms use_augmentation data_augmentation",
        "false",
        augment_hint,
    ),
    *(
        (
            words,
            "0.2",
            types(
                f"+data.train_transform.batch.{name.lower()}._target_=imago.data.{name}",
                f"+data.train_transform.batch.{name.lower()}.alpha={{}}",
            ),
        )
        for words, name in (("mixup mixup_alpha", "MixUp"), ("cutmix cutmix_alpha", "CutMix"))
    ),
    ("fliplr hflip horizontal_flip flip", "0.5", types("data.train_transform.batch.flip.p={}")),
    ("auto_augment aa", "rand-m9", types("data/augment=rand_augment", note="Or trivial_augment, aug_mix.")),
    ("randaugment", "9", types("data/augment=rand_augment", "data.train_transform.pixels.rand_augment.magnitude={}")),
    (
        "color_jitter",
        "0.4",
        types(
            "data/augment=color_jitter",
            *(f"data.train_transform.pixels.color_jitter.{name}={{}}" for name in ("brightness", "contrast")),
        ),
    ),
    ("reprob erasing", "0.4", types("data/augment=random_erasing", "data.train_transform.batch.random_erasing.p={}")),
    ("vflip flipud", "0.4", types("data/augment=vertical_flip", "data.train_transform.batch.vertical_flip.p={}")),
    ("degrees", "10", types("data/augment=rotation", "data.train_transform.pixels.rotation.degrees={}")),
    ("crop_pct", "0.875", types("data.eval_transform.box.share={}")),
    ("interpolation train_interpolation", "bicubic", types("data.interpolation={}")),
    ("mean", "[0.5,0.5,0.5]", types("data.eval_transform.batch.normalize.mean={}")),
    ("std", "[0.5,0.5,0.5]", types("data.eval_transform.batch.normalize.std={}")),
    ("cache", "true", cache_hint),
    (
        "data_dir dataset_dir data_path dataset_path train_dir data_root root data.root data.path data.dir folder "
        "images path directory input_dir image_dir img_dir source train_folder",
        "PATH",
        types_path("data.data_dir={}"),
    ),
    ("steps_per_epoch", "100", types("trainer.limit_train_batches={}")),
    ("validation_steps", "10", types("trainer.limit_val_batches={}")),
    ("image_column_name", "image", types("data=hugging_face", "data.image_column={}")),
    ("label_column_name", "label", types("data=hugging_face", "data.label_column={}")),
    ("datamodule", "mnist", types("data={}")),
    ("dataset dataset_name data_name data.name data_set data.dataset", "mnist", dataset_hint),
    # network
    (
        "arch architecture network backbone encoder net model_name model_name_or_path model_type model.name "
        "model.net.arch a base_model model.net model_arch",
        "resnet50",
        model_hint,
    ),
    ("pretrained use_pretrained imagenet from_pretrained", "false", pretrained_hint),
    ("weights init_weights pretrained_weights", "imagenet", pretrained_hint),
    ("freeze freeze_backbone freeze_encoder feature_extract linear_probe freeze_epochs", "true", freeze_hint),
    ("unfreeze fine_tune trainable", "true", switch("model.freeze=null", "model.freeze=backbone")),
    ("initial_checkpoint load_weights finetune_from", "best.ckpt", types_path("model.init_from={}")),
    ("torchcompile torch_compile use_compile", "true", types("model.compile={}")),
    ("drop dropout drop_rate dropout_rate drop_path", "0.2", dropout_hint),
    # optimizer, schedule, loss
    ("lr lr0 learning_rate base_lr lr_max max_lr init_lr eta0", "0.1", types("model.optimizer.lr={}")),
    ("wd weight_decay", "0.01", types("model.optimizer.weight_decay={}")),
    (
        "momentum mom",
        "0.9",
        types("model/optimizer=sgd", "model.optimizer.momentum={}", note="The other optimizers have no momentum."),
    ),
    (
        "optimizer opt optim optim_name opt_func optimizer_name optimizer.name model.optimizer model.optim",
        "sgd",
        optimizer_hint,
    ),
    (
        "scheduler sched lr_scheduler lr_scheduler_type scheduler_name scheduler.name lr_schedule model.scheduler",
        "cosine",
        scheduler_hint,
    ),
    ("cos_lr cosine", "true", switch("model/scheduler=cosine", "model.scheduler=null")),
    ("opt_eps adam_epsilon", "0.000001", types("+model.optimizer.eps={}")),
    ("lrf", "0.01", types("model/scheduler=cosine", "model.scheduler.floor={}")),
    ("warmup_ratio", "0.1", types("model.scheduler.warmup={}")),
    (
        "scheduler.step_size step_size lr_step_size decay_epochs",
        "7",
        types("model/scheduler=step", "model.scheduler.step_size={}"),
    ),
    (
        "scheduler.gamma gamma lr_gamma decay_rate lr_decay",
        "0.1",
        types("model/scheduler=step", "model.scheduler.gamma={}"),
    ),
    ("scheduler.patience", "5", types("model/scheduler=plateau", "model.scheduler.patience={}")),
    ("scheduler.factor", "0.1", types("model/scheduler=plateau", "model.scheduler.factor={}")),
    (
        "label_smoothing smoothing label_smoothing_factor",
        "0.1",
        types("model.criterions.criterions.ce.label_smoothing={}"),
    ),
    (
        "sampler weighted_sampler use_weighted_sampler oversampling balanced_sampling",
        "weighted",
        switch(Hint(("data.sampler=balanced",), "Or sqrt, or weights (docs/recipes.md)."), "data.sampler=null"),
    ),
    ("class_weights class_weight", "balanced", switch("model.class_weights=auto", "model.class_weights=null")),
    ("clip_grad grad_clip gradient_clip_val gradient_clip clipnorm", "1.0", types("trainer.gradient_clip_val={}")),
    ("max_grad_norm", "1.0", clip_hint),
    (
        "accumulate grad_accum_steps accumulate_grad_batches gradient_accumulation_steps grad_accum",
        "2",
        types("trainer.accumulate_grad_batches={}"),
    ),
    # devices
    ("device", "cpu", device_hint),
    ("gpus n_gpus num_gpus n_gpu nproc_per_node", "1", gpus_hint),
    ("gpu gpu_ids gpu_id cuda", "0", device_hint),
    ("no_cuda use_cpu cpu", "true", switch("trainer=cpu", "trainer=default")),
    ("devices", "2", devices_hint),
    ("accelerator", "cpu", types("trainer.accelerator={}")),
    ("amp half use_amp mixed_precision native_amp", "true", switch(AMP, "trainer.precision=32-true")),
    ("fp16 to_fp16", "true", switch("trainer.precision=16-mixed", "trainer.precision=32-true")),
    ("bf16", "true", switch("trainer.precision=bf16-mixed", "trainer.precision=32-true")),
    ("precision", "16", precision_hint),
    # runs
    ("random_seed manual_seed random_state rand_seed seed_everything", "1", types("seed={}")),
    ("project save_root log_root logs_dir log_dir logdir", "runs", types_path("paths.log_dir={}")),
    (
        "output_dir run_dir out_dir save_dir work_dir save_path exp_dir checkpoint_dir default_root_dir output o",
        "runs/first",
        types_path("hydra.run.dir={}"),
    ),
    ("exp_name experiment_name run_name exp run_id", "first", types("name={}")),
    ("resume resume_from_checkpoint resume_from resume_path", "true", resume_hint),
    ("checkpoint ckpt ckpt_file checkpoint_path load_from", "best.ckpt", types_path("ckpt_path={}")),
    ("report_to loggers log_with", "wandb", logger_hint),
    ("wandb use_wandb log_wandb", "true", switch("logger=wandb", "logger=tensorboard")),
    ("log_interval logging_steps log_every", "10", types("trainer.log_every_n_steps={}")),
    ("metric_for_best_model eval_metric best_metric objective", "accuracy", monitor_hint),
    ("eval_every eval_interval val_interval", "2", types("trainer.check_val_every_n_epoch={}")),
    ("model_ema ema use_ema", "true", switch("callbacks=[default,ema]", Hint(note=f"{LEAVE}."))),
    ("model_ema_decay ema_decay", "0.999", types("callbacks=[default,ema]", "callbacks.ema.decay={}")),
    ("layer_decay layerwise_decay llrd", "0.75", types("model.layer_decay={}")),
    ("filter_bias_and_bn", "true", switch("model.decay_norms_and_biases=false", "model.decay_norms_and_biases=true")),
    ("freeze_bn norm_eval frozen_bn", "true", switch("model.freeze_batch_norm=true", "model.freeze_batch_norm=false")),
    ("verbose", "true", switch("hydra.verbose=true", Hint(note=f"{LEAVE}."))),
    ("profile profiler", "true", switch("debug=profiler", Hint(note=f"{LEAVE}."))),
    # lightning-hydra-template
    (
        "weights_summary",
        "top",
        types("callbacks=[default,model_summary]"),
    ),
    (
        "e",
        "5",
        evaluate_hint,
    ),
    # differential privacy
    (
        "dp privacy private differential_privacy dpsgd dp_sgd opacus make_private make_private_with_epsilon",
        "true",
        switch("strategy=dp", "strategy=none"),
    ),
    ("dp_epsilon epsilon target_epsilon", "3", types("strategy=dp", "strategy.target_epsilon={}")),
    ("dp_delta delta target_delta", "1e-5", types("strategy=dp", "strategy.target_delta={}")),
    ("noise_multiplier", "1.1", types("strategy=dp", "strategy.noise_multiplier={}")),
    ("max_per_sample_grad_norm", "1.0", types("strategy=dp", "strategy.max_grad_norm={}")),
    ("max_physical_batch_size physical_batch_size", "16", types("strategy=dp", "strategy.physical_batch_size={}")),
    ("secure_mode secure_rng", "true", types("strategy=dp", "strategy.secure_rng={}")),
    ("accountant", "rdp", types("strategy=dp", "strategy.accountant={}")),
    ("grad_sample_mode", "hooks", types("strategy=dp", "strategy.grad_sample_mode={}")),
)
WORDS: dict[str, Translate] = {name: translate for names, _, translate in (*ROWS, *REMARKS) for name in names.split()}
EXAMPLES: dict[str, str] = {name: example for names, example, _ in (*ROWS, *REMARKS) for name in names.split()}
"""Foreign word -> a value that people give it."""
PREFIXES = {
    "datamodule.": "data.",
    "optimizer.": "model.optimizer.",
    "optim.": "model.optimizer.",
    "scheduler.": "model.scheduler.",
    "lr_scheduler.": "model.scheduler.",
}
"""Foreign beginning of a key -> ours."""


def meaning(key: str, value: str) -> Hint | None:
    """The hint for a foreign setting, such as `epochs` or `training.lr`, with its value; None for unknown words.

    A prefix, as in `trainer.gpus` or `hparams.lr`, is ignored unless the whole name is in the table.
    """
    name = key.lower().replace("-", "_")
    value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
    translate = WORDS.get(name)
    for theirs, ours in PREFIXES.items():
        if translate is None and name.startswith(theirs):
            return Hint((f"{ours}{key[len(theirs) :]}={value}",))
    translate = translate or WORDS.get(name.rpartition(".")[2])
    return translate(value) if translate is not None else None


def meaning_of_sweep(key: str, value: str) -> Hint | None:
    """The hint for a foreign setting with several values, `sgd,adam`; None unless they are values of one of ours."""
    hints = [meaning(key, single) for single in value.split(",")]
    words = [hint.words[0] for hint in hints if hint is not None and len(hint.words) == 1]
    if len(words) < len(hints) or len({*map(override_key, words)}) > 1:
        return None
    return Hint((f"{override_key(words[0])}={','.join(map(override_value, words))}",))


def is_private(words: Sequence[str]) -> bool:
    """Whether words, ours or foreign ones, choose private training: `strategy=dp`, or `epsilon=3`."""
    hints = [meaning(override_key(word).lstrip("-"), override_value(word)) for word in words]
    return "strategy=dp" in words or any(hint is not None and "strategy=dp" in hint.words for hint in hints)
