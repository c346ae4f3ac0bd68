"""`GET /docs`: interactive documentation of every route, from files that BentoML ships. No other host is asked."""

import hashlib
import re
from base64 import b64encode

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse


def docs_page() -> HTMLResponse:
    """The page, with headers that let it run its own script, load from its own host, and nothing else."""
    page = get_swagger_ui_html(
        openapi_url="docs.json",
        title="Parley API",
        swagger_js_url="static_content/swagger-ui-bundle.js",
        swagger_css_url="static_content/swagger-ui.css",
        swagger_favicon_url="static_content/favicon-light-32x32.png",
    )
    page.headers.update(security_headers(bytes(page.body).decode()))
    return page


def security_headers(html: str) -> dict[str, str]:
    """A content security policy for a page (W3C CSP Level 3), its inline scripts named by their hashes, and more."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = " ".join(f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    policy = {
        "default-src": "'none'",
        "script-src": f"'self' {hashes}",
        "style-src": "'self' 'unsafe-inline'",  # Swagger UI writes style attributes
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
    }
