"""Hidden state of [CLS] by transformers' BertModel, in a process of its own.

python tests/helpers/bert_reference.py DIRECTORY IN.npz OUT.npz
"""

import sys

import numpy as np
import torch
from transformers import BertModel

directory, source, target = sys.argv[1:]
model = BertModel.from_pretrained(directory, add_pooling_layer=False).eval()
ids = torch.from_numpy(np.load(source)["ids"])
with torch.no_grad():
    states = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
np.savez(target, cls=states[:, 0].numpy())
