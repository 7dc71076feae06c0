"""Trains one network and writes all results to one directory.

    python -m scripts.train

trains LeNet-300-100 on scikit-learn's 8x8 digits with RigL at 90 % sparsity (ERK) and exports it:
30 epochs, 20 s on two cores. Expect a test accuracy of 97 %. Others:

    python -m scripts.train --dataset=mnist --data_dir=DATA --batch_size=100 --update_frequency=100
    python -m scripts.train --resume --output_dir=RUN

The second continues a run that was stopped, by `kill -9` too, from its last finished epoch; on the
same CPU it ends with the same bits as a run that was not. The settings are those of the run; giving
others is an error, `--epochs` included, since both schedules depend on it. `scripts/train/runs.py`
lists the files.

With `--execution=csr` the model holds only its active weights, and multiplies these alone. What
comes out is the same but for rounding; such steps run without XLA.

With `--strategy=mirrored` the replicas share each batch; with `--strategy=multi_worker` the workers
that the environment variable TF_CONFIG names do, each of them started with the same command; each
waits until all have started. The chief, worker 0, writes the run directory. When a worker dies, the
others end with exit code 3; start all again with `--resume`, for which every worker must see the
run directory's config.json.

The learning rate falls to 0 along a cosine, keyed on the optimizer's gradient steps. The order of
the examples is a function of (seed, epoch). Of each epoch the last incomplete batch is left out.
"""

import os
import shlex
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags, logging

from scripts.train import settings, train

FLAGS = flags.FLAGS


def _parse_flags(argv):
    try:
        return FLAGS(argv)
    except flags.Error as error:
        sys.exit(train.refuse(error))


def main(_):
    """Runs the script as the flags say. Returns its exit code."""
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    given = {name: FLAGS[name].value for name in settings.NAMES if FLAGS[name].present}
    command = f"python -m scripts.train {shlex.join(sys.argv[1:])}".strip()
    return train.run(FLAGS.output_dir, FLAGS.resume, given, command)


def _define_flags():
    settings.define_flags(FLAGS)
    flags.DEFINE_string(
        "output_dir", None, "Directory of the run. Default: a new one in runs/.", flag_values=FLAGS
    )
    flags.DEFINE_bool("resume", False, "Continue the run in --output_dir.", flag_values=FLAGS)


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=_parse_flags)
