"""Settings of the portal, read top to bottom. Every value that differs between installations comes from the environment (portal/env.py)."""

from pathlib import Path
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from portal import env

BASE_DIR = Path(__file__).resolve().parent.parent
BATON_HOME = env.folder("BATON_HOME", BASE_DIR / "var")
# Set by `make run`: this portal is the demonstration on embedded defaults; /readyz then waits for the groups to have leaders.
BATON_STACK_STARTED_AT = env.text("BATON_STACK_STARTED_AT", "")

DEBUG = env.flag("BATON_DEBUG")
SECRET_KEY = env.secret("BATON_SECRET_KEY", BATON_HOME / "secret-key")
SECRET_KEY_FALLBACKS = env.words("BATON_FORMER_SECRET_KEYS", [])  # still open what was kept under them
# Seal secret properties; the first one seals, all open. Empty: the file property-keys in BATON_HOME (portal/vault.py).
BATON_PROPERTY_KEYS = env.text("BATON_PROPERTY_KEYS", "")
ALLOWED_HOSTS = env.words("BATON_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.words("BATON_ORIGINS", [])

INSTALLED_APPS = [
    "portal.apps.BatonAdminConfig",  # django.contrib.admin with Properties first
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "axes",
    "django_filters",
    "django_htmx",
    "drf_spectacular",
    "rest_framework",
    "rest_framework.authtoken",
    "portal",
    "runtimes",
    "deployments",
]

MIDDLEWARE = [
    "portal.middleware.NoNulInAddress",
    "portal.middleware.AgentsPassBy",
    "django.middleware.security.SecurityMiddleware",
    "portal.middleware.StaticFiles",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",  # every view, but those marked login_not_required (DRF has its own)
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "portal.htmx.RefusalMiddleware",
    "axes.middleware.AxesMiddleware",
]

ROOT_URLCONF = "portal.urls"
ASGI_APPLICATION = "portal.asgi.application"
WSGI_APPLICATION = "portal.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "portal.context.frame",
            ],
        },
    }
]

# ------------------------------------------------------------------------------------------------------------------ database

# DATABASE_URL=postgres://user:password@host:5432/name; without it SQLite in BATON_HOME. SQLite's options are measured, not
# taste: with Django's defaults most writes of six agents and a worker failed on locks (docs/decisions/).
_database = urlsplit(env.text("DATABASE_URL", ""))
if _database.scheme in ("postgres", "postgresql"):
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": _database.hostname or "",
            "PORT": str(_database.port or ""),
            "NAME": _database.path.lstrip("/"),
            "USER": _database.username or "",
            "PASSWORD": _database.password or "",
            "CONN_MAX_AGE": 0,
            "OPTIONS": {"connect_timeout": 5},
        }
    }
elif _database.scheme == "":
    DATABASES = {
        "default": {
            "ENGINE": "portal.database.sqlite3",
            "NAME": BATON_HOME / "portal.sqlite3",
            "CONN_MAX_AGE": 0,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                # secure_delete: what was readable before it became a secret leaves no trace in free pages.
                "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;PRAGMA secure_delete=ON;",
            },
        }
    }
else:
    raise ImproperlyConfigured(f"DATABASE_URL starts with {_database.scheme}://; say postgres://… or leave it out for SQLite.")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# -------------------------------------------------------------------------------------------------------- broker and Celery

REDIS_URL = env.text("REDIS_URL", "redis://127.0.0.1:6379/0")
BATON_PREFIX = env.text("BATON_PREFIX", "baton:")  # of every key and queue of this installation in a shared server

CELERY_BROKER_URL = REDIS_URL
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "global_keyprefix": BATON_PREFIX + "celery:",
    "visibility_timeout": 60,
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
    "max_retries": 1,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_TASK_PUBLISH_RETRY = False  # a lost wake-up is sent again by the sweep; a page never waits for the broker
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TASK_TIME_LIMIT = 60
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULE_FILENAME = str(BATON_HOME / "beat-schedule")
CELERY_BEAT_SCHEDULE = {
    "nudge-stalled-deployments": {
        "task": "deployments.tasks.nudge_stalled_deployments",
        "schedule": 2.0,
        "options": {"expires": 2.0},
    },
    "activate-due-releases": {
        "task": "deployments.tasks.activate_due_releases",
        "schedule": 5.0,
        "options": {"expires": 5.0},
    },
    "forget-old-releases": {"task": "deployments.tasks.forget_old_releases", "schedule": 3600.0, "options": {"expires": 3600.0}},
    "expire-requests": {"task": "runtimes.tasks.expire_requests", "schedule": 5.0, "options": {"expires": 5.0}},
    "return-leaderships": {"task": "runtimes.tasks.return_leaderships", "schedule": 2.0, "options": {"expires": 2.0}},
    "watch-alarms": {"task": "runtimes.tasks.watch_alarms", "schedule": 2.0, "options": {"expires": 2.0}},
    "forget-old-logs": {"task": "runtimes.tasks.forget_old_logs", "schedule": 300.0, "options": {"expires": 300.0}},
    "forget-item-answers": {"task": "runtimes.tasks.forget_item_answers", "schedule": 60.0, "options": {"expires": 60.0}},
    "beat-heartbeat": {"task": "portal.tasks.beat_heartbeat", "schedule": 2.0, "options": {"expires": 4.0}},
}

# ---------------------------------------------------------------------------------------------------------- who may come in

LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "dashboard"
LOGOUT_REDIRECT_URL = "login"
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = 0.1  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_VERBOSE = False
SESSION_COOKIE_NAME = "baton_session"
# Behind a proxy that speaks TLS: cookies go over TLS only, and the proxy's X-Forwarded-Proto says whether a request came so. The proxy
# must set that header itself, or a sender could.
BATON_TLS = env.flag("BATON_TLS", any(origin.startswith("https://") for origin in CSRF_TRUSTED_ORIGINS))
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = BATON_TLS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if BATON_TLS else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "portal.api.authentication.RememberingBasicAuthentication",
        "rest_framework.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.LimitOffsetPagination",
    "PAGE_SIZE": 100,
    "DEFAULT_FILTER_BACKENDS": ["portal.api.filtering.ExactFilterBackend"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [
        "portal.api.parsers.JSONParser",
        "portal.api.parsers.FormParser",
        "portal.api.parsers.MultiPartParser",
    ],
    "EXCEPTION_HANDLER": "portal.problems.handle",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Baton",
    "VERSION": "1",
    "DESCRIPTION": "Design, release and deploy integration programs, and run them in active/passive failover.",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.IsAuthenticated"],
    "SCHEMA_PATH_PREFIX": "/api/v1/",
    "ENUM_NAME_OVERRIDES": {
        "FailoverStatus": "runtimes.protocol.Status",
        "RequestStatus": "runtimes.protocol.RequestStatus",
        "Preference": "runtimes.models.PREFERENCES",
        "IsolationPolicy": "runtimes.api.groups.POLICIES",
        "Cause": "runtimes.api.groups.CAUSES",
        "AlarmKind": "runtimes.models.AlarmKind",
        "FailbackPolicy": "runtimes.models.FailbackPolicy",
        "RunStatus": "deployments.models.RunStatus",
        "ActivationStatus": "deployments.models.ActivationStatus",
        "ApprovalStatus": "deployments.models.ApprovalStatus",
        "StepKind": "deployments.models.StepKind",
        "Condition": "deployments.models.Condition",
        "Role": "portal.models.Role",
    },
}

# -------------------------------------------------------------------------------------------------------- words, time, files

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"  # pages show local times, with UTC on hover (static/portal/portal.js)
USE_TZ = True
USE_I18N = False
# The same way where Django writes a moment itself (the support desk).
DATE_FORMAT = SHORT_DATE_FORMAT = "Y-m-d"
DATETIME_FORMAT = SHORT_DATETIME_FORMAT = "Y-m-d H:i:s"
TIME_FORMAT = "H:i:s"

STATIC_URL = "static/"
WHITENOISE_USE_FINDERS = True  # no collectstatic step: the files are few
WHITENOISE_AUTOREFRESH = DEBUG

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": env.text("BATON_LOG_LEVEL", "INFO")},
    "loggers": {"httpx": {"level": "WARNING"}, "axes": {"level": "WARNING"}},
}

# ------------------------------------------------------------------------------------------------------- agents and runtimes

AGENT_SILENT_AFTER_SECONDS = 10.0  # after this a report is old: its facts are shown as Unknown, with their age
JOIN_TOKEN_VALID_SECONDS = 3600
LOG_LINES_KEPT_PER_RUNTIME = 2000
ITEM_ANSWERS_KEPT_SECONDS = 15 * 60  # questions about failed items, with what an agent showed of them
