"""What is said in the recordings of `bench.speech`, and how it becomes sound.

espeak-ng speaks, so the words are known; everything random is seeded, and the files are kept in `.cache/bench`. Digits,
names and words that are spelled in two ways are avoided: they would count as errors of the ear.
"""

import hashlib
import json
import os
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.speech.decode import measure
from app.speech.voice import RATE

Sound = NDArray[np.float32]

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache/bench"
SENTENCES = """
The weather is nice today, and the children are playing in the garden.
Please remember to close the window before you leave the house.
She bought fresh bread and a bottle of milk at the corner shop.
We should leave early tomorrow because the traffic will be terrible.
My brother works in a hospital on the other side of the city.
Could you please send me the report before the end of the week?
The train was late again, so I missed the beginning of the meeting.
There is a small lake behind the hills where we used to swim.
He forgot his umbrella and came home completely wet.
Dinner is almost ready, so please wash your hands and come to the table.
I have never seen so many birds in our garden before.
They painted the kitchen yellow, and now it looks much brighter.
The doctor told him to drink more water and to sleep longer.
After lunch we walked along the river and talked about the summer.
The old clock in the hall stopped working a long time ago.
Nobody knew the answer, so the teacher explained it again.
It was raining all night, and the road to the village is closed.
You can find the keys in the drawer next to the front door.
The baby is asleep, so please speak quietly when you come in.
I would like a cup of tea with a little honey, please.
Her grandmother still remembers how the whole street looked without cars.
The computer is slow today, and everybody has to wait longer than expected.
Let us meet in front of the library after work.
The soup needs a bit more salt and perhaps some pepper.
He reads the newspaper every morning while he drinks his coffee.
The museum is closed on Monday, but the park is always open.
Our neighbor is looking for somebody who can water the plants.
They moved into a bigger apartment because the family is growing.
The dog was barking all afternoon and nobody knew why.
I left my jacket in the restaurant and had to go back.
The music was so loud that we could not hear each other.
She is learning to play the piano and practices every evening.
Please turn off the light when you are the last to leave.
The bus stops right in front of the school.
We planted tomatoes and beans, and they are growing very well.
The shop on the corner sells the best apples in town.
My sister called to say that she will arrive a little later.
It takes about half an hour to walk to the station from here.
The children built a house of wood and covered it with leaves.
He opened the letter slowly and read it twice without a word.
The water is too cold for swimming, but the beach is beautiful.
I need a new pair of shoes before the winter comes.
The meeting was moved to another room because the projector is broken.
Everybody enjoyed the party, and nobody wanted to go home.
There is a problem with the heating, so the office is rather cold.
She wrote down the address and put the paper into her pocket.
The bridge will be repaired next month, so we have to find another way.
Would you mind helping me carry this table up the stairs?
The cat likes to sleep on the warm stones behind the house.
Thank you very much for the lovely evening and the wonderful food.
The teacher asked the class to write a story about the sea.
I am afraid we have run out of sugar and flour.
The plane landed safely in spite of the heavy storm.
He wants to become a baker because he loves the smell of fresh bread.
Our internet connection was down for most of the morning.
The nurse smiled and told us that everything would be fine.
They are building a new playground near the swimming pool.
Take the second street on the left and then go straight ahead.
We watched the sunset from the top of the mountain.
The package should arrive tomorrow, if nothing goes wrong.
My father repaired the old bicycle and painted it dark green.
The film was interesting, but the end came much too soon.
She always carries a book with her, even on short journeys.
The farmer brings eggs and vegetables to the market every Saturday.
I could not sleep last night because of the noise in the street.
Please ask the manager whether we can change the date.
The leaves are turning red, and the nights are getting colder.
He promised to call as soon as he gets home.
The room is small, but it has a wonderful view of the harbor.
Somebody has left a blue bag under the seat.
The students are preparing a concert for the end of the year.
We had to wait in a long line before we could buy the tickets.
The key does not fit, so it must belong to another door.
My aunt makes the best apple cake in the whole family.
It is getting dark, so let us go back to the car.
The company is looking for people who speak more than one language.
He fell asleep on the sofa with the television still on.
The first snow of the year covered the roofs of the town.
You should try the fish, because it was caught this morning.
The wind was so strong that it broke a branch of the old tree.
""".strip().splitlines()
VOICES = ("en-us", "en-gb", "en-gb-x-rp", "en-us+f3", "en-gb+m3", "en-us+m7")
_SEED = 20250718
_NOISES = (0.0, 0.0005, 0.001, 0.002)  # of a file: standard deviation, full scale is 1
_LOUDEST = 0.3  # peak of a sentence


@dataclass(frozen=True)
class Kind:
    """A set of recordings: `share` of each file is talk, which has pauses of 0.2 to 0.9 s; `seconds` of one file."""

    share: float
    files: int
    seconds: float


@dataclass(frozen=True)
class Spoken:
    """A recording, 16 kHz, 16 bit, mono; `seconds` long, and what is said in it."""

    path: Path
    seconds: float
    words: str


def recordings(kind: Kind) -> list[Spoken]:
    """The recordings of a set: made by espeak-ng, or those made before."""
    folder = CACHE / f"{kind.share * 100:.0f}-{_mark(kind)}"
    if not (folder / "words.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng([_SEED, round(kind.share * 100)])
        told = {f"{number}.wav": _make(folder / f"{number}.wav", kind, random) for number in range(kind.files)}
        unfinished = folder / f"words.{os.getpid()}"
        unfinished.write_text(json.dumps(told, indent=1), "utf-8")
        unfinished.replace(folder / "words.json")  # last: what was broken off before is made again
    known = json.loads((folder / "words.json").read_text("utf-8"))
    return [Spoken(folder / name, of["seconds"], of["words"]) for name, of in known.items()]


def write(samples: Sound, to: Path) -> None:
    """A wav of 16 kHz, 16 bit, mono."""
    with wave.open(str(to), "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(RATE)
        output.writeframes((samples * 32767).clip(-32768, 32767).astype("<i2").tobytes())


def _mark(kind: Kind) -> str:
    """Changes with whatever the files depend on."""
    program = subprocess.run(["espeak-ng", "--version"], capture_output=True, text=True, check=True).stdout
    told = f"{kind} {program} {Path(__file__).read_text('utf-8')}"
    return hashlib.blake2b(told.encode(), digest_size=6).hexdigest()


def _make(path: Path, kind: Kind, random: np.random.Generator) -> dict[str, object]:
    parts: list[Sound] = []
    words: list[str] = []
    talk, wanted = 0.0, kind.seconds * random.uniform(0.85, 1.15)
    for sentence in _sentences(random):
        if talk >= wanted * kind.share:
            break
        sound = said(sentence, str(random.choice(VOICES)), int(random.integers(135, 171)))
        pause = random.uniform(0.2, 0.9)
        talk += sound.size / RATE + pause
        # The rest is shared out so that talk comes in groups, as people do.
        if kind.share < 1 and (not words or random.random() < 0.4):
            parts.append(np.zeros(0, np.float32))  # a long silence goes here
        parts += [sound, np.zeros(int(pause * RATE), np.float32)]
        words.append(sentence)
    gaps = [place for place, part in enumerate(parts) if not part.size]
    if gaps:
        shares = random.uniform(0.5, 1.5, len(gaps) + 1)
        lengths = (talk / kind.share - talk) * shares / shares.sum() * RATE
        for place, length in zip(gaps, lengths, strict=False):
            parts[place] = np.zeros(int(length), np.float32)
        parts.append(np.zeros(int(lengths[-1]), np.float32))
    sound = np.concatenate(parts)
    noise = random.standard_normal(sound.size, np.float32) * np.float32(random.choice(_NOISES))
    write(sound + noise, path)
    return {"seconds": round(sound.size / RATE, 2), "words": " ".join(words)}


def _sentences(random: np.random.Generator) -> Iterator[str]:
    while True:
        yield from (SENTENCES[number] for number in random.permutation(len(SENTENCES)))


@cache
def said(sentence: str, voice: str, speed: int) -> Sound:
    """A sentence, without the silence around it."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "said.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-w", str(wav), sentence], check=True)
        sound = np.concatenate([*measure(wav, max_seconds=60).samples()])
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    sound = sound[loud[0] : loud[-1] + 1]
    said: Sound = (sound * (_LOUDEST / np.abs(sound).max())).astype(np.float32)
    return said
