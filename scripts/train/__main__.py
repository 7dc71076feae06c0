"""Trains one network and writes all results to one directory.

    python -m scripts.train

trains LeNet-300-100 on scikit-learn's 8x8 digits with RigL at 90 % sparsity (ERK) and exports it:
30 epochs, 20 s on two cores. Expect a test accuracy of 97 %. Other examples:

    python -m scripts.train --dataset=mnist --data_dir=DATA --batch_size=100 --update_frequency=100
    python -m scripts.train --resume --output_dir=RUN

The second one continues a run that was stopped, even by `kill -9`, after its last finished epoch.
On the same CPU it ends with the same bits as a run that was not stopped. The settings of the run
are used. It is an error to give other settings, even other `--epochs`, because the schedules depend
on them. `scripts/train/runs.py` lists the files.

With `--execution=csr` the model stores and multiplies only its active weights. The result is the
same except for rounding. These steps run without XLA.

With `--strategy=mirrored` the devices of this machine share each batch. With
`--strategy=multi_worker` the workers named in the environment variable TF_CONFIG share it: start
the same command on each of them; each waits until all have started. The chief, worker 0, writes the
run directory. If a worker dies, the others end with exit code 3. Then start all of them again with
`--resume`. For this, every worker must be able to read config.json in the run directory.

The learning rate falls to 0 along a cosine over the gradient steps of the optimizer. The order of
the examples depends only on the seed and the epoch. In each epoch the last, incomplete batch is
left out.
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
        program, *others = FLAGS(argv)
    except flags.Error as error:
        sys.exit(train.refuse(error))
    if others:
        sys.exit(train.refuse(f"A setting must be like --epochs=10. Received: {others[0]}"))
    return [program]


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
