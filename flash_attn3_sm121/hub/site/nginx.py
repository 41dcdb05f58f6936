"""The nginx configuration that sends a hub's tree with the headers of our own server. No publish changes it."""

from __future__ import annotations

from pathlib import Path

from flash_attn3_sm121.hub.site.address import TYPES
from flash_attn3_sm121.hub.site.simple import JSON_TYPE

IMMUTABLE = "public, max-age=31536000, immutable"
# The page may load its own style, script and icon, and nothing else.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": POLICY,
}


def nginx_conf(root: Path, listen: str) -> str:
    """A server block and its maps, to be included inside `http { }`.

    The revision of an answer follows from where its file really lies: `resolve/main` is a link to a folder that is
    called like the revision, and `$realpath_root` is that folder. So a publish needs no reload.
    """
    types = "".join(f"        {kind.partition(';')[0]} {ending[1:]};\n" for ending, kind in TYPES.items())
    common = "".join(f'add_header {name} "{value}" always; ' for name, value in HEADERS.items())
    return f"""\
# Written by `flash-attn3 hub nginx`; include it inside http {{ }}. No publish changes it, none needs a reload.
map $realpath_root $flash_attn3_commit {{
    default "";
    "~/revisions/(?<sha>[0-9a-f]{{40}})$" $sha;
}}
map $uri $flash_attn3_repo {{
    default "";
    "~^/(?:api/(?:models|kernels)/|kernels/)?(?<name>[^/]+/[^/]+)(?:/|$)" $name;
}}
map $uri $flash_attn3_revision {{
    default "";
    "~^/(?:api/(?:models|kernels)/|kernels/)?[^/]+/[^/]+/(?:resolve|revision|tree)/(?<wanted>[^/]+)" $wanted;
}}
map $flash_attn3_rev $flash_attn3_cache {{
    default "no-cache";
    "~^[0-9a-f]{{40}}$" "{IMMUTABLE}";
}}
map $http_accept $flash_attn3_simple {{
    default index.html;
    "~{JSON_TYPE.replace("+", chr(92) * 2 + "+").replace(".", chr(92) * 2 + ".")}" index.json;
}}
server {{
    listen {listen};
    root "{root}/www";
    sendfile on;
    absolute_redirect off;
    charset utf-8;
    charset_types text/css text/javascript text/markdown text/plain;
    gzip on;
    gzip_vary on;
    gzip_min_length 512;
    gzip_types application/json {JSON_TYPE} text/css text/javascript text/markdown text/plain;
    types {{
{types}    }}
    default_type application/octet-stream;
    {common}
    add_header Cache-Control no-cache;
    location ~ "^/(?:kernels/)?(?<flash_attn3_name>[^/]+/[^/]+)/resolve/(?<flash_attn3_rev>[^/]+)/(?<inner>.+)$" {{
        root "{root}/www/$flash_attn3_name/resolve/$flash_attn3_rev";
        try_files /$inner =404;
        {common}
        add_header X-Repo-Commit $flash_attn3_commit always;
        add_header Cache-Control $flash_attn3_cache;
        error_page 404 = @missing;
    }}
    location /api/ {{
        try_files $uri/index.json $uri =404;
        error_page 404 = @missing;
    }}
    location @missing {{
        internal;
        default_type application/json;
        set $code EntryNotFound;
        if (!-d "$document_root/$flash_attn3_repo/resolve/$flash_attn3_revision") {{ set $code RevisionNotFound; }}
        if (!-d "$document_root/$flash_attn3_repo/resolve") {{ set $code RepoNotFound; }}
        {common}
        add_header X-Error-Code $code always;
        return 404 '{{"error": "$code"}}';
    }}
    location /simple/ {{
        types {{ text/html html; {JSON_TYPE} json; }}
        {common}
        add_header Cache-Control no-cache;
        add_header Vary Accept;
        try_files $uri$flash_attn3_simple $uri $uri/ =404;
    }}
    location = /healthz {{ default_type application/json; }}
    location ~ "^/kernels/(?<page>[^/]+/[^/]+)/?$" {{ return 302 /$page/; }}
    error_page 404 /404.html;
}}
"""
