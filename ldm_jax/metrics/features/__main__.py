r"""Converts the weights of a feature network to safetensors, once.

    python -m ldm_jax.metrics.features inception \
        pt_inception-2015-12-05-6726825d.pth inception.safetensors

The network is one of inception, dinov2 and clip. Published files are read without
running any code in them; the converted file has the same numbers, with the names of
pytorch-fid, of DINOv2's hub or of OpenAI's CLIP. Both files can be given wherever
weights of features are expected, and have the same checksum in reports.
"""

from ldm_jax import cli
from ldm_jax.errors import ConversionError


def _main(argv: list[str]) -> None:
    """Converts once: name of the network, file to read, file to write."""
    from ldm_jax.config import choose
    from ldm_jax.metrics.features import FEATURES, load_network
    from ldm_jax.weights.files import write_weights

    if len(argv) != 4:
        raise ConversionError(
            "give the name of a network, the file to read and the file to write; "
            "--help has an example"
        )
    _, name, source, target = argv
    convertible = {key: row for key, row in FEATURES.items() if row.convert}
    row = choose(convertible, name, "feature network")
    if not target.endswith(".safetensors"):
        raise ConversionError(f"{target} must end in .safetensors")
    # A file of another network is refused before anything is written.
    checksum = load_network(name, source).record["checksum"]
    write_weights(target, row.convert(source))
    print(f"{target}: {row.title}, checksum {checksum}")


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, arguments="NETWORK SOURCE TARGET")


if __name__ == "__main__":
    main()
