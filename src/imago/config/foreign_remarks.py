"""Settings of other trainers for which there is nothing to type: why not, or what to do instead."""

from imago.config.hints import Translate, no_counterpart, says

LEAVE = "Leave it out"
CLASSES = f"{LEAVE}: the number of classes comes from the data."
EXTEND = "It is not built in: docs/extend/transform.md shows how to add it."
REMARKS: tuple[tuple[str, str, Translate], ...] = (  # names, an example of a value, what to type
    (
        "eval_batch_size per_device_eval_batch_size val_batch_size test_batch_size validation_batch_size val_bs",
        "64",
        says("Scoring uses the batch size of training, data.batch_size."),
    ),
    (
        "item_tfms batch_tfms hsv_h hsv_s hsv_v translate shear perspective remode recount aug_repeats aug_splits",
        "0.4",
        says(EXTEND),
    ),
    (
        "validation_dir val_dir valid_dir test_dir validation_data",
        "PATH",
        says("Put train/, val/ and test/ into one folder: data.data_dir=PATH."),
    ),
    (
        "train_val_test_split",
        "[55000,5000,10000]",
        says("Splits are fractions of the images: type data.val_ratio=0.1 and data.test_ratio=0.2, for example."),
    ),
    (
        "max_train_samples max_eval_samples max_predict_samples",
        "500",
        says("The number of batches is limited instead: trainer.limit_train_batches=10, for example."),
    ),
    ("nc num_classes n_classes num_labels n_out classes num_class nb_classes", "10", says(CLASSES)),
    (
        "in_chans in_channels color_mode",
        "3",
        says(f"{LEAVE}: networks take colour images, and grey ones are converted."),
    ),
    ("include_top global_pool", "false", says(f"{LEAVE}: the head fits the classes of the data.")),
    (
        "warmup_epochs warmup_steps warmup",
        "3",
        says("The warm-up is a fraction of all steps: type model.scheduler.warmup=0.05, for example."),
    ),
    (
        "loss criterion loss_fn loss_func",
        "focal",
        says("The loss is cross-entropy. docs/extend/loss.md shows how to use another."),
    ),
    (
        "metrics metric",
        "accuracy",
        says("Accuracy, F1, precision and recall are always computed. docs/extend/metric.md shows how to add others."),
    ),
    (
        "save save_txt save_conf",
        "true",
        says(
            "ml-inference always writes predictions.csv, with all probabilities, and ml-train best.ckpt and last.ckpt, "
            "to the run folder. hydra.run.dir=FOLDER chooses it."
        ),
    ),
    (
        "save_every save_interval save_steps save_strategy save_freq save_period save_total_limit save_top_k "
        "checkpoint_hist",
        "5",
        says("best.ckpt and last.ckpt are always kept. callbacks.resume.every_n_train_steps=100 saves more often."),
    ),
    (
        "shuffle",
        "true",
        says(
            f"{LEAVE}: train batches are always drawn at random (shuffled in each epoch, or Poisson sampling with "
            "strategy=dp), and val and test keep their order."
        ),
    ),
    ("poisson_sampling", "true", says(f"{LEAVE}: with strategy=dp, batches are always Poisson samples.")),
    ("task prefetcher", "classify", says(f"{LEAVE}: Imago classifies images.")),
    ("plots visualize", "true", no_counterpart("the figures are drawn anyway, and plots.format chooses their format")),
    ("val", "true", no_counterpart("val is scored after each epoch")),
    (
        "single_cls rect multi_scale close_mosaic mosaic copy_paste nbs box cls dfl pose kobj overlap_mask mask_ratio "
        "conf iou bgr",
        "true",
        no_counterpart("it is for finding objects in images"),
    ),
    (
        "remove_unused_columns label_names label_mode labels subset",
        "true",
        no_counterpart("the labels are the names of the folders, or a column of the data set"),
    ),
    (
        "pooling activation ignore_mismatched_sizes",
        "true",
        no_counterpart("each network has its own layers, and its head fits the classes of the data"),
    ),
    ("logging_strategy logging_first_step disable_tqdm", "true", no_counterpart("each epoch is logged")),
    ("dist_bn local_rank", "0", no_counterpart("trainer=ddp starts its processes itself")),
    (
        "min_lr warmup_lr cooldown_epochs moms div pct_start warmup_momentum warmup_bias_lr",
        "0",
        no_counterpart("a schedule is model/scheduler=cosine, step or plateau with the settings of --help-all"),
    ),
    ("initial_epoch", "5", says("resume=RUN continues a run where it stopped.")),
    ("trust_remote_code", "true", no_counterpart("code that comes with a data set is not run")),
    (
        "push_to_hub push_to_hub_model_id hub_model_id hub_token hub_strategy token use_auth_token",
        "true",
        no_counterpart("ml-export writes the files of a run that others need"),
    ),
    (
        "progress_bar_refresh_rate enable_progress_bar",
        "true",
        says("The progress bar is callbacks.progress_bar, and callbacks.progress_bar=null removes it."),
    ),
    ("print_config", "true", no_counterpart("--cfg job prints the settings, and each run keeps them in config.yaml")),
    ("ignore_warnings", "true", no_counterpart("python -W ignore hides the warnings")),
    ("enforce_tags extras", "true", no_counterpart("--cfg job prints the settings, and nothing asks for tags")),
    (
        "lin1_size lin2_size lin3_size",
        "64",
        says("model=mnist lists the sizes of its layers: 'model.net.hidden=[64,128,64]'."),
    ),
    ("output_size", "10", says(CLASSES)),
    (
        "evaluation_strategy eval_strategy load_best_model_at_end",
        "epoch",
        says(f"{LEAVE}: val is scored after each epoch, and the best checkpoint at the end."),
    ),
    ("exist_ok overwrite_output_dir", "true", says(f"{LEAVE}: each run has a folder of its own.")),
    (
        "eval_only evaluate test_only do_eval do_predict predict_only",
        "true",
        says(f"{LEAVE}: the best checkpoint is scored at the end, and ml-eval ckpt_path=RUN scores it again."),
    ),
    ("do_train train_only", "true", says(f"{LEAVE}: ml-train trains.")),
    (
        "find_lr lr_find auto_lr_find",
        "true",
        says("A sweep compares learning rates: -m model.optimizer.lr=0.01,0.001."),
    ),
    (
        "config config_file cfg_file yaml",
        "mine.yaml",
        says("Type --config-dir DIR experiment=NAME: a file of settings is an experiment (docs/configuration.md)."),
    ),
)
