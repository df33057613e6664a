"""The names of all files in the directories that tfm creates.

model/                         a model directory; entries with * exist in run directories only
├── config.json                settings, tokenizers and hashes; written last
├── model.safetensors          the best weights
├── tokenizer.model            or source.model and target.model, with their vocabularies
├── shortlist.safetensors      optional: likely target tokens of each source token
├── README.md                  the model card
├── metrics.jsonl              * a line for each progress report and validation
├── .tfm-run.json              * the marker of a run that has no `config.json` yet
├── .tfm-train.lock            * held by the process that trains
├── checkpoints/               * `update-00000100/` and so on
│   ├── update-00000100/       model, average, optimizer, state.json; manifest.json is last
│   └── best-on-schedule/      the best weights of scheduled validations
└── corpus/                    * the prepared text, in a folder named by its hash
"""

import re

# A model directory.
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SHORTLIST_FILE = "shortlist.safetensors"
CARD_FILE = "README.md"
JOINT_FILE = "tokenizer.model"
SOURCE_FILE, TARGET_FILE = "source.model", "target.model"
SHARED_VOCABULARY_FILE = "vocab.json"
SOURCE_VOCABULARY_FILE, TARGET_VOCABULARY_FILE = "source.vocab.json", "target.vocab.json"
# The sets of tokenizer files that a model directory may hold.
TOKENIZER_FILE_SETS = (
    {JOINT_FILE},
    {SOURCE_FILE, TARGET_FILE},
    {SOURCE_FILE, TARGET_FILE, SHARED_VOCABULARY_FILE},
    {SOURCE_FILE, TARGET_FILE, SOURCE_VOCABULARY_FILE, TARGET_VOCABULARY_FILE},
)
TOKENIZER_FILES = tuple(sorted(set().union(*TOKENIZER_FILE_SETS)))

# An export for another toolkit.
EXPORT_FILE = ".tfm-export.json"

# A run directory.
METRICS_FILE = "metrics.jsonl"
MARKER_FILE = ".tfm-run.json"
LOCK_FILE = ".tfm-train.lock"
CHECKPOINTS = "checkpoints"
CORPUS = "corpus"
# A run that ends between two scheduled validations also validates its last weights, and keeps them
# if they are the best. The best weights of scheduled validations are saved here: a resumed run
# restores them, so that its result equals that of an uninterrupted run to the byte.
ON_SCHEDULE = "best-on-schedule"
BEST_FILES = (WEIGHTS_FILE, CARD_FILE)

# A checkpoint.
CHECKPOINT = re.compile(r"update-[0-9]{8,}")
MANIFEST_FILE = "manifest.json"
AVERAGE_FILE = "average.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
CHECKPOINT_FILES = (  # beside the manifest
    WEIGHTS_FILE,
    AVERAGE_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
)

# Prepared text.
CACHE_HASHES = "files.json"
CACHE_TEMPORARIES = (CACHE_HASHES, "stdin")
PREPARED = re.compile(r"[0-9a-f]{32}")
PREPARED_LOCK = re.compile(r"\.[0-9a-f]{32}\.lock")
PREPARED_FACTS = "store.json"
PREPARED_FILES = (
    PREPARED_FACTS,
    *(f"{side}.{kind}" for side in ("source", "target") for kind in ("ids", "lengths", "starts")),
)
