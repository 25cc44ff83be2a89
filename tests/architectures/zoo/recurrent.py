"""Recurrent networks, written here: nn.LSTM, nn.GRU and nn.RNN as speech and text models used them."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.architectures.zoo.architecture import VOCABULARY, Architecture


class SpeechLSTM(nn.Module):
    """Strided convolutions over time, layers in both directions, and scores of letters, as for CTC."""

    def __init__(self, features: int = 16, hidden: int = 30) -> None:
        super().__init__()
        self.subsample = nn.Conv1d(features, 28, 3, stride=2, padding=1)
        self.layers = nn.LSTM(28, hidden, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(2 * hidden)
        self.letters = nn.Linear(2 * hidden, 31)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        frames = F.relu(self.subsample(spectrogram.transpose(1, 2))).transpose(1, 2)
        return F.log_softmax(self.letters(self.norm(self.layers(frames)[0])), -1)


class TextGRU(nn.Module):
    """Scores of the next token at every place; padding comes after the text, so no state has seen it."""

    def __init__(self, hidden: int = 61) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 45)
        self.layers = nn.GRU(45, hidden, num_layers=2, batch_first=True)
        self.tokens = nn.Linear(hidden, VOCABULARY)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.tokens(self.layers(self.embedding(ids) * mask.unsqueeze(-1))[0])


class SeriesRNN(nn.Module):
    """The state after the last step foretells the next."""

    def __init__(self, features: int = 3, hidden: int = 37) -> None:
        super().__init__()
        self.layers = nn.RNN(features, hidden, num_layers=3, batch_first=True, nonlinearity="tanh")
        self.next = nn.Linear(hidden, features)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.next(self.layers(values)[1][-1])


MODULES = {module.__name__: module for module in (SpeechLSTM, TextGRU, SeriesRNN)}

RECURRENT = (
    Architecture("speech-lstm", "SpeechLSTM", "", {}, "LSTM in both directions", kind="spectrogram", size=21),
    Architecture("text-gru", "TextGRU", "", {}, "GRU over tokens"),
    Architecture("series-rnn", "SeriesRNN", "", {}, "RNN over a series", kind="series", size=24),
)
