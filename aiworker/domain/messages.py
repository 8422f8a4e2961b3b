"""The sentence a person reads for each error code: what happened and what to do, in Portuguese and in English."""

from __future__ import annotations

from typing import Literal

Language = Literal["pt", "en"]

_SENTENCES: dict[str, tuple[str, str]] = {
    "internal_error": (
        "Algo deu errado do nosso lado. Tente de novo em alguns minutos.",
        "Something went wrong on our side. Try again in a few minutes.",
    ),
    "invalid_input": (
        "O pedido tem um campo ausente ou inválido. Corrija os campos indicados e envie de novo.",
        "The request has a missing or invalid field. Correct the fields named and send it again.",
    ),
    "unknown_job_type": (
        "Este tipo de análise não existe. Use um dos tipos listados nos detalhes.",
        "There is no such kind of analysis. Use one of those listed in the details.",
    ),
    "media_url_invalid": (
        "O endereço da imagem não é válido. Envie um endereço http, https ou data completo.",
        "The image address is not valid. Send a complete http, https or data address.",
    ),
    "media_address_forbidden": (
        "O endereço da imagem aponta para uma rede interna. Envie um endereço público.",
        "The image address points into an internal network. Send a public address.",
    ),
    "media_too_large": (
        "A imagem é grande demais. Envie uma foto menor.",
        "The image is too large. Send a smaller photo.",
    ),
    "media_type_unsupported": (
        "O arquivo não é uma imagem que sabemos ler. Envie JPEG, PNG, WebP ou HEIC.",
        "The file is not an image that we can read. Send a JPEG, PNG, WebP or HEIC.",
    ),
    "media_not_found": (
        "Não há imagem nesse endereço. Envie a foto de novo.",
        "There is no image at that address. Send the photo again.",
    ),
    "image_unreadable": (
        "A imagem está corrompida ou incompleta. Envie a foto de novo.",
        "The image is damaged or incomplete. Send the photo again.",
    ),
    "image_kills_child": (
        "Não conseguimos processar esta imagem. Envie outra foto.",
        "We cannot process this image. Send another photo.",
    ),
    "detector_unknown": (
        "Não há detector com esse nome. Envie o pedido sem o campo detector.",
        "There is no detector of that name. Send the request without the field detector.",
    ),
    "media_unavailable": (
        "O servidor da imagem não respondeu a tempo. Envie a foto de novo.",
        "The image's server did not answer in time. Send the photo again.",
    ),
    "provider_error": (
        "O modelo de IA falhou. Tente de novo em alguns minutos.",
        "The AI model failed. Try again in a few minutes.",
    ),
    "provider_unavailable": (
        "O modelo de IA está fora do ar. Tente de novo em alguns minutos.",
        "The AI model is down. Try again in a few minutes.",
    ),
    "provider_unreachable": (
        "O modelo de IA está fora do ar. Tente de novo em alguns minutos.",
        "The AI model is down. Try again in a few minutes.",
    ),
    "provider_stream_broken": (
        "A resposta do modelo de IA foi interrompida. Tente de novo.",
        "The AI model's answer broke off. Try again.",
    ),
    "provider_timeout": (
        "O modelo de IA demorou demais. Tente de novo em alguns minutos.",
        "The AI model took too long. Try again in a few minutes.",
    ),
    "provider_rate_limited": (
        "O modelo de IA está no limite de uso. Tente de novo mais tarde.",
        "The AI model has reached its usage limit. Try again later.",
    ),
    "provider_refused": (
        "O modelo de IA recusou este conteúdo. Mude o texto ou a foto e tente de novo.",
        "The AI model refused this content. Change the text or the photo and try again.",
    ),
    "prompt_blocked": (
        "O modelo de IA recusou este conteúdo. Mude o texto ou a foto e tente de novo.",
        "The AI model refused this content. Change the text or the photo and try again.",
    ),
    "answer_blocked": (
        "O modelo de IA interrompeu a própria resposta. Mude o texto ou a foto e tente de novo.",
        "The AI model withheld its own answer. Change the text or the photo and try again.",
    ),
    "local_only": (
        "Esta análise só pode ser feita no nosso servidor, que está ocupado. Tente de novo mais tarde.",
        "This analysis may only be done on our own server, which is busy. Try again later.",
    ),
    "provider_misconfigured": (
        "O modelo de IA está mal configurado. Avise o suporte.",
        "The AI model is misconfigured. Tell support.",
    ),
    "provider_key_rejected": (
        "O modelo de IA está mal configurado. Avise o suporte.",
        "The AI model is misconfigured. Tell support.",
    ),
    "provider_model_not_found": (
        "O modelo de IA está mal configurado. Avise o suporte.",
        "The AI model is misconfigured. Tell support.",
    ),
    "provider_model_cannot_see": (
        "O modelo de IA está mal configurado. Avise o suporte.",
        "The AI model is misconfigured. Tell support.",
    ),
    "provider_request_rejected": (
        "O modelo de IA não aceitou este pedido. Avise o suporte.",
        "The AI model did not accept this request. Tell support.",
    ),
    "prompt_too_long": (
        "O pedido é longo demais para o modelo de IA. Tente de novo com um texto menor.",
        "The request is too long for the AI model. Try again with a shorter text.",
    ),
    "answer_invalid": (
        "O modelo de IA deu uma resposta que não pudemos usar. Tente de novo.",
        "The AI model gave an answer that we could not use. Try again.",
    ),
    "answer_truncated": (
        "A resposta do modelo de IA foi cortada. Tente de novo com um pedido menor.",
        "The AI model's answer was cut short. Try again with a smaller request.",
    ),
    "answer_empty": (
        "O modelo de IA não respondeu nada. Tente de novo.",
        "The AI model answered nothing. Try again.",
    ),
    "answer_leaks": (
        "O modelo de IA deu uma resposta que não pudemos usar. Mude o texto e tente de novo.",
        "The AI model gave an answer that we could not use. Change the text and try again.",
    ),
    "no_provider": (
        "Nenhum modelo de IA pôde responder agora. Tente de novo mais tarde.",
        "No AI model could answer now. Try again later.",
    ),
    "inference_unavailable": (
        "A detecção de imagens está fora do ar. Tente de novo em alguns minutos.",
        "Image detection is down. Try again in a few minutes.",
    ),
    "inference_out_of_memory": (
        "Falta memória para analisar imagens agora. Tente de novo em alguns minutos.",
        "There is no memory to analyse images now. Try again in a few minutes.",
    ),
    "deadline_exceeded": (
        "A análise demorou demais. Tente de novo.",
        "The analysis took too long. Try again.",
    ),
    "attempts_exhausted": (
        "A análise foi interrompida várias vezes. Envie de novo ou avise o suporte.",
        "The analysis was interrupted several times. Send it again or tell support.",
    ),
    "queue_error": (
        "A fila falhou. Tente de novo em alguns minutos.",
        "The queue failed. Try again in a few minutes.",
    ),
    "database_unavailable": (
        "O serviço está temporariamente fora do ar. Tente de novo em alguns segundos.",
        "The service is down for a moment. Try again in a few seconds.",
    ),
    "job_not_found": (
        "Esta análise não existe ou não é sua. Confira o identificador.",
        "This analysis does not exist or is not yours. Check the identifier.",
    ),
    "job_already_finished": (
        "Esta análise já terminou e não pode mais ser cancelada.",
        "This analysis has already ended and can no longer be cancelled.",
    ),
    "too_many_active_jobs": (
        "Você já tem análises demais em andamento. Espere uma terminar.",
        "You have too many analyses running. Wait for one to end.",
    ),
    "idempotency_conflict": (
        "Esta chave de idempotência já foi usada com outro pedido. Use uma chave nova.",
        "This idempotency key was already used for another request. Use a new key.",
    ),
    "not_authenticated": (
        "Entre na sua conta e tente de novo.",
        "Sign in and try again.",
    ),
    "not_allowed": (
        "Sua conta não pode fazer isso.",
        "Your account may not do this.",
    ),
    "invalid_json": (
        "O corpo do pedido não é um objeto JSON. Envie JSON válido.",
        "The request's body is not a JSON object. Send valid JSON.",
    ),
    "invalid_job_id": (
        "O identificador da análise deve ser um UUID.",
        "The analysis identifier must be a UUID.",
    ),
    "body_too_large": (
        "O pedido é grande demais. Envie uma foto menor.",
        "The request is too large. Send a smaller photo.",
    ),
    "not_found": (
        "Este endereço não existe.",
        "There is no such address.",
    ),
    "method_not_allowed": (
        "Este endereço não aceita esse método HTTP.",
        "This address does not take that HTTP method.",
    ),
    "configuration_error": (
        "O serviço está mal configurado. Avise o suporte.",
        "The service is misconfigured. Tell support.",
    ),
    "weights_unavailable": (
        "O modelo de detecção não está instalado. Avise o suporte.",
        "The detection model is not installed. Tell support.",
    ),
}

CODES = frozenset(_SENTENCES)


def sentence(code: str, language: Language = "pt") -> str:
    """The sentence for `code`; an unknown code reads as `internal_error`."""
    portuguese, english = _SENTENCES.get(code, _SENTENCES["internal_error"])
    return english if language == "en" else portuguese
