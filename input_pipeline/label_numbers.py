"""Label sets of records as arrays of numbers, for losses that compare them.

A label becomes a number by hashing it together with its modality, because "normal" says something
else about a fundus photograph than about a chest X-ray. The same finding in two sources is the same
label. A record without labels is a set of its own: its id stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def of(samples: Mapping[str, tf.Tensor], max_labels: int) -> tf.Tensor:
    """The labels of samples as numbers, each once.

    Args:
      samples: what ``records.parse`` returns for n records.
      max_labels: further labels of a sample, in the order of the record, are left out.

    Returns:
      uint32 (n, max_labels), filled up with 0. Equal labels have equal numbers above 0; of 1,000
      different ones two are equal with a probability of 1e-4.
    """
    import tensorflow as tf

    def hashed(*texts: tf.Tensor) -> tf.Tensor:
        # FarmHash, which TensorFlow promises not to change
        joined = tf.strings.join(texts, separator="\0")
        return tf.strings.to_hash_bucket_fast(joined, (1 << 32) - 1) + 1

    labels = samples["labels"]
    modality = tf.gather(samples["modality"], labels.value_rowids())
    sets = labels.with_flat_values(hashed(modality, labels.flat_values))
    alone = hashed("", samples["source"], samples["id"])[:, None]
    return tf.cast(
        tf.where(
            labels.row_lengths()[:, None] > 0,
            sets.to_tensor(shape=(None, max_labels)),
            tf.pad(alone, [[0, 0], [0, max_labels - 1]]),
        ),
        tf.uint32,
    )
