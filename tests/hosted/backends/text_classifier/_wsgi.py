import argparse
import logging.config
import os

logging.config.dictConfig(
    {
        "version": 1,
        "formatters": {"standard": {"format": "[%(asctime)s] [%(levelname)s] %(message)s"}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "standard", "stream": "ext://sys.stdout"}
        },
        "root": {"level": "ERROR", "handlers": ["console"], "propagate": True},
    }
)

from label_studio_ml.api import init_app  # noqa: E402
from model import SimpleTextClassifier  # noqa: E402

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Label studio")
    parser.add_argument("-p", "--port", dest="port", type=int, default=9090)
    args = parser.parse_args()
    app = init_app(model_class=SimpleTextClassifier)
    app.run(port=args.port)
else:
    app = init_app(
        model_class=SimpleTextClassifier,
        model_dir=os.environ.get("MODEL_DIR", os.path.dirname(__file__)),
        redis_queue=os.environ.get("RQ_QUEUE_NAME", "default"),
        redis_host=os.environ.get("REDIS_HOST", "localhost"),
        redis_port=os.environ.get("REDIS_PORT", 6379),
    )
