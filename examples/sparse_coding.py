"""Learn a dictionary for image patches, and code the patches of images that it has not seen.

The images are the 1,000 digits that the package carries. A patch of 7 × 7 pixels, less its mean,
becomes a sum of 5 of 128 atoms.
"""

import time
from importlib import resources

import fastfactor
import numpy as np

N_ATOMS, N_NONZERO, SIDE = 128, 5, 7


def main():
    patches = all_patches(load_images())
    seen, unseen = patches[: len(patches) // 2], patches[len(patches) // 2 :]

    start = time.perf_counter()
    learned = fastfactor.learn_dictionary(
        seen, N_ATOMS, n_nonzero_coefs=N_NONZERO, max_iter=10, random_state=0
    )
    print(f"learned from {len(seen):,} patches in {time.perf_counter() - start:.1f} s")

    start = time.perf_counter()
    codes = fastfactor.omp(unseen, learned.dictionary, n_nonzero_coefs=N_NONZERO)
    print(f"coded {len(unseen):,} others in {1e3 * (time.perf_counter() - start):.0f} ms")

    rebuilt = fastfactor.spmm(codes, learned.dictionary)
    lost = np.square(unseen - rebuilt).sum() / np.square(unseen).sum()
    print(f"{codes.nnz / len(unseen):.1f} atoms a patch leave {lost:.1%} of the squares")


def load_images():
    data = resources.files("fastfactor.demo") / "data" / "mnist-test-1000.npz"
    with resources.as_file(data) as path, np.load(path) as arrays:
        return arrays["images"].astype(np.float32) / 255


def all_patches(images):
    """Patches side by side, (n, SIDE²), each less its mean, without those of empty background."""
    n, height, width = images.shape
    cut = images.reshape(n, height // SIDE, SIDE, width // SIDE, SIDE)
    patches = cut.transpose(0, 1, 3, 2, 4).reshape(-1, SIDE * SIDE)
    return (patches - patches.mean(axis=1, keepdims=True))[np.ptp(patches, axis=1) > 0.1]


if __name__ == "__main__":
    main()
