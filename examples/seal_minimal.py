"""SEAL (arXiv 2506.10943) from top to bottom, flat and serial, on transformers and PEFT; nothing of selfedit is imported.

    python examples/seal_minimal.py MODEL_FOLDER DATA.json

DATA is a list of {title, context, questions: [{question, answer}]}. Two loops: the inner loop trains a throw-away LoRA on one
self-edit; the outer loop (ReST-EM) trains the policy on the best self-edit of each passage. The package's faster ways are tested
against this file: the same plan gives the same loss at each step.
"""

import hashlib
import json
import math
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

ROUNDS, PASSAGES, EDITS = 2, 4, 3
INNER = {"rank": 32, "alpha": 64, "epochs": 4, "learning_rate": 1e-3, "batch_size": 1, "clip": 1.0}
OUTER = {"rank": 32, "alpha": 64, "epochs": 2, "learning_rate": 3e-4, "batch_size": 1, "clip": 1.0}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EDIT_PROMPT = "Write questions about this passage, each with a short answer from it.\n\nTopic: {title}\nPassage: {context}"
EXAM_PROMPT = "Let's answer a question directly and concisely.\nQuestion: {title} {question}\nAnswer:"


def seed_from(*parts):
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def chat_ids(tokenizer, request):
    text = tokenizer.apply_chat_template([{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def turn(tokenizer, request, answer):
    """Token ids of a turn and the number of leading ids that carry no loss."""
    head = chat_ids(tokenizer, request)
    return head + tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id], len(head)


def documents(tokenizer, passage, edit):
    """The reference's documents: title and line, one for each line of the edit, then title and passage; loss everywhere."""
    texts = [line.strip() for line in edit.split("\n") if line.strip()] + [passage["context"].strip()]
    return [(tokenizer(f"{passage['title']}\n{text}")["input_ids"] + [tokenizer.eos_token_id], 0) for text in texts]


def train(model, rows, settings, seed):
    """Trains a fresh LoRA on rows of (ids, unlabelled); returns the PEFT model and the loss of each step."""
    config = LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], target_modules=LINEAR, layers_to_transform=settings.get("layers")
    )
    peft_model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed_from(seed, "init"))
    for name, weight in peft_model.named_parameters():
        if "lora_A" in name:
            bound = 1 / math.sqrt(weight.shape[1])
            weight.data = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
    weights = [weight for weight in peft_model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings["learning_rate"], weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed_from(seed, "order"))
    steps = []
    for _ in range(settings["epochs"]):
        order = torch.randperm(len(rows), generator=generator).tolist()
        steps += [[rows[i] for i in order[at : at + settings["batch_size"]]] for at in range(0, len(rows), settings["batch_size"])]
    losses = []
    for index, batch in enumerate(steps):
        optimiser.param_groups[0]["lr"] = settings["learning_rate"] * (1 - index / len(steps))
        labelled = sum(len(ids) - max(1, unlabelled) for ids, unlabelled in batch)
        loss = 0.0
        for ids, unlabelled in batch:
            x = torch.tensor([ids])
            labels = x.clone()
            labels[:, :unlabelled] = -100
            logits = peft_model(input_ids=x, use_cache=False).logits[0, :-1].float()
            part = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / labelled
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(weights, settings["clip"])
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss)
    return peft_model, losses


def say(model, tokenizer, prompt_ids, length, **sampling):
    out = model.generate(torch.tensor([prompt_ids]), max_new_tokens=length, pad_token_id=tokenizer.eos_token_id, **sampling)
    return tokenizer.decode(out[0, len(prompt_ids) :], skip_special_tokens=True).strip()


def exam(model, tokenizer, passage):
    """Share of the questions whose answer has at least 60 % of the gold answer's words; the passage is not shown."""
    right = 0
    for question in passage["questions"]:
        request = EXAM_PROMPT.format(title=passage["title"], question=question["question"])
        words = say(model, tokenizer, chat_ids(tokenizer, request), 32, do_sample=False).lower().replace(",", " ").split()
        gold = question["answer"].lower().replace(",", " ").split()
        right += sum(word in words for word in gold) >= 0.6 * len(gold)
    return right / len(passage["questions"])


def main(model_folder, data_file):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    policy = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    with open(data_file) as stream:
        data = json.load(stream)
    for round_ in range(ROUNDS):
        chosen = []
        for number, passage in enumerate(data[round_ * PASSAGES : (round_ + 1) * PASSAGES]):
            prompt = chat_ids(tokenizer, EDIT_PROMPT.format(**passage))
            before, best = exam(policy, tokenizer, passage), None
            for candidate in range(EDITS):  # E-step: sample, adapt, test
                seed = seed_from(round_, number, candidate)
                torch.manual_seed(seed)
                edit = say(policy, tokenizer, prompt, 256, do_sample=True, temperature=1.0, top_p=0.95, top_k=0)
                adapted, losses = train(policy, documents(tokenizer, passage, edit), INNER, seed)
                reward = exam(adapted, tokenizer, passage)
                policy = adapted.unload()
                print(f"round {round_} passage {number} edit {candidate}: loss {losses[-1]:.3f} exam {before:.2f} -> {reward:.2f}")
                if edit and (best is None or reward > best[0]):
                    best = (reward, edit)
            if best is not None:
                chosen.append(turn(tokenizer, EDIT_PROMPT.format(**passage), best[1]))
        if not chosen:
            break  # the data has no more passages
        adapted, losses = train(policy, chosen, OUTER, round_)  # M-step: SFT on the best edit of each passage
        policy = adapted.merge_and_unload()
        print(f"round {round_}: policy trained on {len(chosen)} self-edits, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
