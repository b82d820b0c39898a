"""The card that goes with an adapter: what it is, how it was made, what it scored on the dev split."""

from __future__ import annotations

from lcfbench.adapters.base import Adapter


def card(adapter: Adapter) -> str:
    """Markdown with the model-hub metadata block on top."""
    c, t = adapter.config, adapter.config.training
    kind = {"lcf": "LCF", "lcfx": "LCF-X", "c2c": "C2C"}.get(c.kind, c.kind)
    tags = "\n".join(f"- {tag}" for tag in ("lcfbench", "latent-communication", c.kind))
    head = f"---\nlibrary_name: lcfbench\ntags:\n{tags}\n---\n\n# {kind} adapter, {c.receiver} ← {c.sharer}\n"
    facts = [
        f"- receiver {c.receiver}, sharer {c.sharer}; both stay frozen",
        f"- {adapter.params:,} parameters in {len(c.layers)} of {c.receiver_geometry.layers} receiver layers",
        f"- options {c.options}; token alignment {c.token_alignment}",
        f"- trained on the train split of {', '.join(t.get('tasks', []))}: {t.get('steps')} steps of {t.get('batch_size')}, AdamW, "
        f"lr {t.get('lr')}, warm-up {t.get('warmup')}, clip {t.get('clip')}, weight decay {t.get('weight_decay')}, seed {t.get('seed')}",
        f"- models in {t.get('models_dtype')} on {t.get('device')}, {t.get('minutes')} minutes",
    ]
    columns = [k for k in (t.get("dev") or [{}])[0] if k not in {"step", "loss"}]
    table = ["| step | loss | " + " | ".join(columns) + " |", "| ---: |" + " ---: |" * (len(columns) + 1)]
    table += [f"| {p['step']} | {p['loss']:.3f} | " + " | ".join(f"{p[k]:.3f}" for k in columns) + " |" for p in t.get("dev", [])]
    dev = f"\n## Dev split ({t.get('dev_documents')} documents a task)\n\n" + "\n".join(table) + "\n"
    note = (
        "\n`deranged` gives every document the message of another one: what is left of the gain there is adaptation of the receiver, "
        "not communication. The saved state is the best by matched dev accuracy.\n"
    )
    return head + "\n" + "\n".join(facts) + "\n" + dev + note
