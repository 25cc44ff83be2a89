"""The architectures under test, by family."""

from tests.architectures.zoo.architecture import LENGTH, Architecture
from tests.architectures.zoo.audio import AUDIO
from tests.architectures.zoo.convnets import CONVNETS
from tests.architectures.zoo.decoders import DECODERS
from tests.architectures.zoo.detection import DETECTION
from tests.architectures.zoo.diffusion import DIFFUSION
from tests.architectures.zoo.encoders import ENCODERS
from tests.architectures.zoo.experts import EXPERTS
from tests.architectures.zoo.recurrences import RECURRENCES
from tests.architectures.zoo.recurrent import RECURRENT
from tests.architectures.zoo.seq2seq import SEQ2SEQ
from tests.architectures.zoo.vision import VISION

FAMILIES = {
    "text encoder": ENCODERS,
    "text decoder": DECODERS,
    "mixture of experts": EXPERTS,
    "state space": RECURRENCES,
    "encoder-decoder": SEQ2SEQ,
    "vision": VISION,
    "audio and series": AUDIO,
    "convolutional": CONVNETS,
    "detection": DETECTION,
    "recurrent": RECURRENT,
    "diffusion": DIFFUSION,
}
ARCHITECTURES = tuple(entry for family in FAMILIES.values() for entry in family)

__all__ = ["ARCHITECTURES", "FAMILIES", "LENGTH", "Architecture"]
