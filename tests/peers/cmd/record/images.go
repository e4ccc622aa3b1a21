package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// imageConfig is the part of an OCI image configuration that shapes a container.
type imageConfig struct {
	User       string              `json:"User,omitempty"`
	Env        []string            `json:"Env,omitempty"`
	Entrypoint []string            `json:"Entrypoint,omitempty"`
	Cmd        []string            `json:"Cmd,omitempty"`
	Volumes    map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir string              `json:"WorkingDir,omitempty"`
	StopSignal string              `json:"StopSignal,omitempty"`
	Labels     map[string]string   `json:"Labels,omitempty"`
}

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
app:x:1000:1001:app:/work:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
`

const group = `root:x:0:
daemon:x:1:
staff:x:50:app,nobody
audio:x:29:app
app:x:1001:
nobody:x:65534:
app-extra:x:1002:root,app
`

var imageConfigs = map[string]imageConfig{
	"berth.test/busybox:1": {Env: []string{path}, Cmd: []string{"sh"}},
	"berth.test/entry:1": {
		Env:        []string{path, "FROM_IMAGE=image", "BOTH=image"},
		Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"exec sleep 100000"},
		WorkingDir: "/work", Volumes: map[string]struct{}{"/data": {}}, StopSignal: "SIGUSR1",
		Labels: map[string]string{"org.example.note": "never copied"},
	},
	"berth.test/numeric:1": {Env: []string{path}, User: "1000:50", Cmd: []string{"sleep", "100000"}},
	"berth.test/named:1":   {Env: []string{path}, User: "app:staff", Cmd: []string{"sleep", "100000"}},
	"berth.test/bare:1":    {},
	// Of a registry that does not answer.
	"127.0.0.1:9/there:1": {Env: []string{path}, Cmd: []string{"sh"}, Labels: map[string]string{"org.example.note": "there"}},
	"berth.test/pause:1":  {Entrypoint: []string{"/bin/sleep", "2147483647"}},
}

// importImages makes every image out of the host's static busybox and gives it to containerd. It returns what the
// recordings keep of them.
func importImages(ctx context.Context, c *containerd) (any, error) {
	busybox, err := findBusybox()
	if err != nil {
		return nil, err
	}
	layer, err := rootfs(busybox)
	if err != nil {
		return nil, err
	}
	for name, config := range imageConfigs {
		archive, err := ociArchive(name, config, layer)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(root, "image.tar")
		if err := os.WriteFile(file, archive, 0o644); err != nil {
			return nil, err
		}
		if _, err := c.run(ctx, "images", "import", file); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return map[string]any{"configs": imageConfigs, "passwd": passwd, "group": group}, nil
}

func findBusybox() (string, error) {
	for _, path := range []string{"/usr/bin/busybox", "/bin/busybox"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no static busybox: install Debian's busybox-static")
}

func rootfs(busybox string) ([]byte, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h *tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err == nil {
			err = w.WriteHeader(h)
		}
		if err == nil {
			_, err = w.Write(body)
		}
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "work", "data", "root", "var"} {
		mode := int64(0o755)
		if dir == "tmp" || dir == "work" {
			mode = 0o1777
		}
		add(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: mode}, nil)
	}
	add(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			add(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}, nil)
		}
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		add(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/" + name, Mode: 0o644}, []byte(text))
	}
	if err == nil {
		err = w.Close()
	}
	return out.Bytes(), err
}

func ociArchive(name string, config imageConfig, layer []byte) ([]byte, error) {
	files := map[string][]byte{}
	blob := func(mediaType string, body []byte) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256(body))
		files["blobs/sha256/"+digest] = body
		return map[string]any{"mediaType": mediaType, "digest": "sha256:" + digest, "size": len(body)}
	}
	const oci = "application/vnd.oci.image."
	layerBlob := blob(oci+"layer.v1.tar", layer)
	image, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{layerBlob["digest"]}}})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": oci + "manifest.v1+json",
		"config": blob(oci+"config.v1+json", image), "layers": []any{layerBlob}})
	if err != nil {
		return nil, err
	}
	descriptor := blob(oci+"manifest.v1+json", manifest)
	descriptor["annotations"] = map[string]string{"io.containerd.image.name": name}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []any{descriptor}})
	if err != nil {
		return nil, err
	}
	files["index.json"] = index
	files["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	var names []string
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o644, Size: int64(len(files[n]))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[n]); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}
