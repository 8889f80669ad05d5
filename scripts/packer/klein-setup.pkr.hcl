# What a machine image needs beside its source: klein-setup in an environment of its own, the models, and the proof.
# Take the provisioners into a build of yours; `null` stands for its source.

variable "version" {
  type    = string
  default = "0.1.0"
}

variable "endpoint" {
  type    = string
  default = "https://huggingface.co"
}

source "null" "image" {
  communicator = "none"
}

build {
  sources = ["source.null.image"]

  provisioner "shell" {
    environment_vars = ["VERSION=${var.version}"]
    inline = [
      "python3 -m venv /opt/klein-setup",
      "/opt/klein-setup/bin/pip install klein-setup==$VERSION",
    ]
  }

  provisioner "shell" {
    environment_vars = ["HF_ENDPOINT=${var.endpoint}"]
    inline = [
      "/opt/klein-setup/bin/klein-setup install --only files --set fp8 --comfyui /opt/ComfyUI --no-input",
      "/opt/klein-setup/bin/klein-setup verify --no-smoke --set fp8 --comfyui /opt/ComfyUI --json > /opt/klein-setup/image.json",
    ]
  }
}
