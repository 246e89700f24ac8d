"""Everything in a recording that is drawn, as one posed mesh: skin, forearm and things, with their colours.

Skins and things are baked once per process; a person keeps skin over all recordings, sleeves change.
"""
from functools import lru_cache

import numpy as np
import torch

from datasets.synthetic import things
from datasets.synthetic.anatomy import Anatomy
from datasets.synthetic.motion import Clip
from datasets.synthetic.people import Arm, Person, Side, make_arm, pose_arm
from datasets.synthetic.picture import Surface
from datasets.synthetic.surface import bake_arm, bake_skin, bake_thing, skin_tone, texel_barycentrics, texels
from utils.render import vertex_normals

HAND = 255  # label of the hand in the segmentation; the forearm is background
LOOKS = 6   # of every thing


def assemble(seed: int, side: Side, person: Person, hand: Anatomy, clip: Clip, verts: np.ndarray,
             rng: np.random.Generator) -> tuple[Surface, torch.Tensor, torch.Tensor]:
    """The drawn triangles, their vertices and normals (t,v,3) float32 in the table frame; verts (t,778,3) of the posed hand."""
    arm = make_arm(side, person.size_mm / 187, rng)
    skin = np.concatenate([verts, pose_arm(arm, hand, verts, clip.turn, clip.elbow)], 1)
    skin_faces = np.concatenate([side.faces, arm.faces])
    colours = [_skin(seed, side, person), _arm_colours(arm, _tone(seed, person), rng)]
    faces, labels = [skin_faces], [np.full(len(side.faces), HAND), np.zeros(len(arm.faces))]
    gloss = [np.full(len(skin_faces), rng.uniform(0.02, 0.10))]
    points, normals = [skin], [vertex_normals(torch.from_numpy(skin).float(), torch.from_numpy(skin_faces)).numpy()]
    start = skin.shape[1]
    for i, number in enumerate(clip.ids):
        mesh, turn = things.mesh(number), clip.places[:, i, :3, :3].transpose(0, 2, 1)
        points.append(mesh.verts @ turn + clip.places[:, i, None, :3, 3])
        normals.append(mesh.normals @ turn)
        colour, shine = _thing(seed, number, int(rng.integers(LOOKS)))
        colours.append(colour)
        gloss.append(np.full(len(mesh.faces), shine))
        labels.append(np.full(len(mesh.faces), number))
        faces.append(mesh.faces + start)
        start += len(mesh.verts)
    surface = Surface(torch.from_numpy(np.concatenate(faces)), np.concatenate(labels).astype(np.uint8),
                      torch.from_numpy(np.concatenate(colours)), torch.from_numpy(np.concatenate(gloss)[:, None]).float(),
                      len(skin_faces))
    return surface, *(torch.from_numpy(np.concatenate(part, 1)).float() for part in (points, normals))


def _tone(seed: int, person: Person) -> np.ndarray:
    return skin_tone(person.tone, np.random.default_rng([seed, 21, person.index]))


@lru_cache(maxsize=24)
def _skin(seed: int, side: Side, person: Person) -> np.ndarray:
    """A person's skin, baked on the mean hand so that it stretches with the shape."""
    mean = np.zeros(10)
    verts, _ = side.rest(mean)
    normals = vertex_normals(torch.from_numpy(verts), side.model.faces).numpy()
    rng = np.random.default_rng([seed, 22, person.index])
    weights = side.model.weights.numpy()
    return bake_skin(_tone(seed, person), verts, normals, side.faces, weights, side.anatomy(mean), rng)


def _arm_colours(arm: Arm, tone: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The forearm's atlas. Angles are carried as cosine and sine, so that no face straddles a jump."""
    around = np.concatenate([np.zeros((778, 3)), np.stack([arm.along, np.cos(arm.turn), np.sin(arm.turn)], 1)])
    around[arm.loop, 1:] = around[778:778 + len(arm.loop), 1:]
    spots = texels(around, arm.faces)
    return bake_arm(tone, spots[:, 0], np.arctan2(spots[:, 2], spots[:, 1]), arm.sleeve, rng)


@lru_cache(maxsize=128)
def _thing(seed: int, number: int, look: int) -> tuple[np.ndarray, float]:
    """Colours of a thing in one of its looks, and its gloss."""
    rng = np.random.default_rng([seed, 31, number, look])
    spots = np.einsum("tk,fkc->ftc", texel_barycentrics(), things.mesh(number).uv).reshape(-1, 2)
    return bake_thing(spots, rng), float(rng.choice([0.0, 0.05, 0.25]))
