#!/usr/bin/env bash
# Pictures of hands -> five panels (NNN_plot.jpg), mesh in the camera (NNN_mesh.ply) and numbers, in out/<name>/demo.
# images/NNN_img.jpg with the camera matrix images/NNN_K.npy beside it; other pictures: demo.input=FOLDER demo.K=null (nominal camera).
# ./scripts/demo.sh [option file, default options/freihand_cmr_sg.yaml] [key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
choose options/freihand_cmr_sg.yaml "$@"
run demo "$options" ${rest[@]+"${rest[@]}"}
