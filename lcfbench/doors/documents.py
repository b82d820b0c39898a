"""Questions of other harnesses as documents: chats and texts become views of both models.

>>> document_of("hellaswag", "0", View("How is glue made? It is"), None).noted.user
'<<note>>\\n\\nHow is glue made? It is'
"""

from __future__ import annotations

from dataclasses import replace

from lcfbench.tasks.document import NOTE, Document, View, background_request


def document_of(task: str, ident: str, receiver: View, sharer: View | None) -> Document:
    """A free answer to a view. sharer: what the other model reads instead; None: the same.

    A sharer that writes its message is asked for background knowledge, or goes on with its own text.
    """
    noted = replace(receiver, user=f"{NOTE}\n\n{receiver.user}")
    if sharer is None:
        full, theirs = receiver, receiver
        request = background_request(receiver.user.strip())
    else:
        full, theirs, request = replace(receiver, user=f"{sharer.user}\n\n{receiver.user}"), sharer, sharer
    return Document(
        task,
        ident,
        receiver,
        theirs,
        full,
        request,
        noted,
        "generate",
        "",
        shared=sharer is None,
        request_until=("\n",),
    )
