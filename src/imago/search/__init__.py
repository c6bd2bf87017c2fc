"""Searches for settings (`hparams_search=`): the study, its trials, pruning, the live table and the results.

Optuna chooses the values, and is imported only where it is used. `hydra_plugins/imago_sweeper.py` leads here.
"""

from imago.definitions import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(__name__, {"settings": ["check_command"], "sweep": ["search"]})
