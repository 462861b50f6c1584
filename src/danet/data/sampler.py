"""Which image comes in which optimizer step: a function of the seed and the step alone.

The training images form one endless stream: the seed's permutation of epoch 0, then that of epoch 1, and so on.
Optimizer step s takes the images s*B to (s+1)*B of the stream, and each image is augmented under the key (seed,
epoch, index). So any step's batch is known without having run the steps before, whatever the number of workers or
processes; every image is seen once an epoch and none is dropped.

With repeat factors a round takes the epoch's place: every image occurs in it at least once, rare ones more often, so it
is longer than the data set. Intervals and lengths of runs still count an epoch as so many images as the data set has.

B batch size, N images of the data set.
"""

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# (epoch, index), and for an image that is repeated in a round (epoch, index, repeat) with repeat = 1, 2, ..., so that
# each repeat is augmented differently.
Key = tuple[int, ...]


class StepSampler(Sampler[list[Key]]):
    """The keys of one process's part of every batch, from `first_step` to `total_steps`.

    Args:
        num_images: N.
        batch_size: images per optimizer step, over all processes.
        parts: into how many batches a process divides its share (accumulation).
        rank: this process.
        world_size: number of processes.
        seed: the run's seed.
        first_step: the step to begin with.
        total_steps: the step to end before.
        factors: (N,) of at least 1, how often each image comes in a round; None for once each.
    """

    def __init__(
        self,
        num_images: int,
        *,
        batch_size: int,
        parts: int,
        rank: int,
        world_size: int,
        seed: int,
        first_step: int,
        total_steps: int,
        factors: np.ndarray | None = None,
    ) -> None:
        self._batch_size = batch_size
        self._size = batch_size // (world_size * parts)
        self._offsets = [(part * world_size + rank) * self._size for part in range(parts)]
        self._seed = seed
        self._steps = range(first_step, total_steps)
        self._factors = factors
        self._length = num_images if self._factors is None else round_length(self._factors)
        nothing = np.empty(0, int)
        self._order = (-1, nothing, nothing)  # epoch, its images, and which of its image's places each is

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._steps) * len(self._offsets)

    def __iter__(self) -> Iterator[list[Key]]:
        """Keys of batch after batch."""
        for step in self._steps:
            for offset in self._offsets:
                first = step * self._batch_size + offset
                yield [self._key(position) for position in range(first, first + self._size)]

    def _key(self, position: int) -> Key:
        epoch, place = divmod(position, self._length)
        if self._order[0] != epoch:
            self._order = (epoch, *self._drawn(epoch))
        index, again = (int(numbers[place]) for numbers in self._order[1:])
        return (epoch, index, again) if again else (epoch, index)

    def _drawn(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The images of an epoch or a round in order, and how often each has come in it before."""
        generator = np.random.default_rng([self._seed, epoch])
        if self._factors is None:
            return generator.permutation(self._length), np.zeros(self._length, int)
        counts = repeats(self._factors, generator)
        index = np.repeat(np.arange(len(counts)), counts)
        again = np.arange(self._length) - np.repeat(np.cumsum(counts) - counts, counts)
        order = generator.permutation(self._length)
        return index[order], again[order]


def round_length(factors: np.ndarray) -> int:
    """Places of a round: the factors' sum, rounded up."""
    return math.ceil(round(float(factors.sum()), 6))


def repeats(factors: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How often each image comes in a round: (N,) integers whose sum is `round_length`.

    LVIS's sampler rounds each factor up or down by a draw of its own, so that its rounds differ in length. Here all are
    rounded by one draw (systematic sampling, the images in random order): every image's mean is its factor, times
    less than 1 + 1 / N for the round's whole length, and all rounds are of one length.

    Args:
        factors: (N,) of at least 1.
        generator: drawn from.
    """
    length = round_length(factors)
    order = generator.permutation(len(factors))
    ends = np.cumsum(factors[order] * (length / factors.sum()))
    ends[-1] = length
    counts = np.empty(len(factors), int)
    counts[order] = np.diff(np.floor(ends + generator.random()), prepend=0)
    return counts
