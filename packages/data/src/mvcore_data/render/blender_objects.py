"""Surfaces as objects of a Blender scene."""

from __future__ import annotations

from typing import Any

import bpy  # pyright: ignore[reportMissingImports]
import numpy as np
from numpy.typing import NDArray

from mvcore_data.render.surfaces import Surface, to_linear


class BlenderObject:
    """A surface in a scene, with all that was made for it."""

    def __init__(self, scene: Any, surface: Surface) -> None:
        self._mesh = _mesh(surface)
        self._image = None if surface.texture is None or surface.uv is None else _image(surface.texture)
        self._material = _material(surface, self._image)
        self._mesh.materials.append(self._material)
        self._object: Any = bpy.data.objects.new("surface", self._mesh)
        scene.collection.objects.link(self._object)

    def remove(self) -> None:
        """Take it out of the scene and free it."""
        bpy.data.objects.remove(self._object)
        bpy.data.meshes.remove(self._mesh)
        bpy.data.materials.remove(self._material)
        if self._image is not None:
            bpy.data.images.remove(self._image)


def _mesh(surface: Surface) -> Any:
    mesh: Any = bpy.data.meshes.new("surface")
    corners = surface.faces.ravel()
    mesh.vertices.add(len(surface.points))
    mesh.vertices.foreach_set("co", np.ascontiguousarray(surface.points, np.float32).ravel())
    mesh.loops.add(len(corners))
    mesh.loops.foreach_set("vertex_index", corners.astype(np.int32))
    mesh.polygons.add(len(surface.faces))
    mesh.polygons.foreach_set("loop_start", np.arange(0, len(corners), 3, dtype=np.int32))
    mesh.update(calc_edges=True)
    if surface.normals is None:
        mesh.polygons.foreach_set("use_smooth", np.zeros(len(surface.faces), np.bool_))
    else:
        normals = mesh.attributes.new("custom_normal", "FLOAT_VECTOR", "POINT")
        normals.data.foreach_set("vector", np.ascontiguousarray(surface.normals, np.float32).ravel())
    if surface.uv is not None:
        layer = mesh.uv_layers.new(name="uv")
        layer.uv.foreach_set("vector", np.ascontiguousarray(surface.uv[corners], np.float32).ravel())
    if surface.colours is not None:
        opaque = np.full((len(surface.colours), 4), 255, np.uint8)
        opaque[:, :3] = surface.colours
        colours = mesh.attributes.new("colour", "BYTE_COLOR", "POINT")
        colours.data.foreach_set("color_srgb", (opaque / np.float32(255)).astype(np.float32).ravel())
    mesh.validate()
    return mesh


def _image(texture: NDArray[np.uint8]) -> Any:
    height, width, channels = texture.shape
    image: Any = bpy.data.images.new("texture", width, height, alpha=True)
    image.alpha_mode = "CHANNEL_PACKED"  # colour and alpha are apart, as in glTF
    pixels = np.ones((height, width, 4), np.float32)
    pixels[..., :channels] = texture[::-1] / np.float32(255)
    image.pixels.foreach_set(pixels.ravel())
    image.update()
    return image


def _material(surface: Surface, image: Any) -> Any:
    """Matt, and cut away where the texture's alpha is below one half."""
    material: Any = bpy.data.materials.new("surface")
    tree = material.node_tree
    nodes, links = tree.nodes, tree.links
    nodes.clear()
    matt, output = nodes.new("ShaderNodeBsdfDiffuse"), nodes.new("ShaderNodeOutputMaterial")
    colour = tuple(to_linear(np.array(surface.colour)).tolist())
    shader = matt.outputs["BSDF"]
    if image is not None:
        texture, tint = nodes.new("ShaderNodeTexImage"), nodes.new("ShaderNodeVectorMath")
        texture.image = image
        tint.operation = "MULTIPLY"
        tint.inputs[1].default_value = colour
        links.new(texture.outputs["Color"], tint.inputs[0])
        links.new(tint.outputs["Vector"], matt.inputs["Color"])
        shader = _cut(tree, texture.outputs["Alpha"], shader)
    elif surface.colours is not None:
        painted = nodes.new("ShaderNodeVertexColor")
        painted.layer_name = "colour"
        links.new(painted.outputs["Color"], matt.inputs["Color"])
    else:
        matt.inputs["Color"].default_value = (*colour, 1)
    links.new(shader, output.inputs["Surface"])
    return material


def _cut(tree: Any, alpha: Any, shader: Any) -> Any:
    there, mix = tree.nodes.new("ShaderNodeMath"), tree.nodes.new("ShaderNodeMixShader")
    nothing = tree.nodes.new("ShaderNodeBsdfTransparent")
    there.operation = "GREATER_THAN"
    there.inputs[1].default_value = 0.5
    tree.links.new(alpha, there.inputs[0])
    tree.links.new(there.outputs["Value"], mix.inputs["Fac"])
    tree.links.new(nothing.outputs["BSDF"], mix.inputs[1])
    tree.links.new(shader, mix.inputs[2])
    return mix.outputs["Shader"]
