//! A pod's life as a user sees it: order, restarts, exit codes, messages, hooks, probes, resources, volumes,
//! network.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

mod support;

use anyhow::{Context, ensure};
use berth_harness::{
    cgroup, image,
    node::Node,
    oci,
    process::Process,
    socket::Pod,
    tools::Build,
    wait::{self, PATIENCE},
};
use std::{collections::BTreeMap, fs, time::Duration};
use support::{apply, container, on_a_node, pod, shell};

/// Time limit for the first restart: the back-off is 10 s, then 20 s.
const BACK_OFF: Duration = Duration::from_secs(60);

#[test]
fn init_containers_run_in_order_and_the_rest_after_the_sidecars() {
    on_a_node(Build::Plain, |node| {
        let notes = "volumeMounts: [{name: notes, mountPath: /notes}]";
        let init: String = [
            container("first", "sleep 0.3; echo first >> /notes/all", notes),
            container(
                "side",
                "trap 'echo side-ends >> /notes/all; exit 0' TERM; sleep 0.3; echo side >> /notes/all; touch /started; \
                 while :; do sleep 1 & wait $!; done",
                &format!("{notes}\nrestartPolicy: Always\nstartupProbe: {{exec: {{command: [test, -e, /started]}}, periodSeconds: 1}}"),
            ),
            container("second", "echo second >> /notes/all", notes),
        ]
        .concat();
        let host = node.dir.join("notes");
        let spec = format!(
            "volumes: [{{name: notes, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]\ninitContainers:\n{init}",
            host.display()
        );
        let main = container(
            "main",
            "trap 'echo main-ends >> /notes/all; exit 0' TERM; echo main >> /notes/all; while :; do sleep 1 & wait $!; done",
            notes,
        );
        apply(node, "order", &pod("order", &spec, &main))?;
        let ready = node.ready("default/order")?;
        ensure!(ready.phase() == "Running" && ready.condition("Initialized") == "True", "{}", ready.status());
        // A container without a readiness probe is Ready before its shell has read the script.
        wait::until("the main container has begun", PATIENCE, || {
            fs::read_to_string(host.join("all")).is_ok_and(|t| t.contains("main"))
        })?;
        node.remove("order.yaml")?;
        node.gone("default/order", PATIENCE)?;
        let notes = fs::read_to_string(host.join("all"))?;
        let lines: Vec<&str> = notes.lines().collect();
        ensure!(lines == ["first", "side", "second", "main", "main-ends", "side-ends"], "{lines:?}");
        Ok(())
    });
}

#[test]
fn restart_policies_exit_codes_and_messages() {
    on_a_node(Build::Plain, |node| {
        for (name, policy, script) in [
            ("never-0", "Never", "exit 0"),
            ("never-3", "Never", "echo why > /dev/termination-log; exit 3"),
            ("on-failure-0", "OnFailure", "exit 0"),
            ("on-failure-4", "OnFailure", "exit 4"),
            ("always-0", "Always", "exit 0"),
            // In a pod's command `$$` stands for one dollar.
            ("killed", "Never", "sh -c 'kill -9 $$$$'; exit $?"),
        ] {
            apply(node, name, &shell(name, &format!("restartPolicy: {policy}"), script))?;
        }
        let logs =
            container("main", "echo from the log; exit 1", "terminationMessagePolicy: FallbackToLogsOnError");
        apply(node, "fallback", &pod("fallback", "restartPolicy: Never", &logs))?;
        // logd writes a line without a newline when the agent reports the end of the container.
        let unended = container(
            "main",
            "echo first; printf 'fatal: no newline' >&2; exit 3",
            "terminationMessagePolicy: FallbackToLogsOnError",
        );
        apply(node, "unended", &pod("unended", "restartPolicy: Never", &unended))?;

        let ended = |name: &str, phase: &str| {
            let name = format!("default/{name}");
            node.pod(&format!("is {phase}"), &name, PATIENCE, |p| p.phase() == phase)
        };
        // Phase and exit code are published at once, the message once the record of the exit is stored.
        let told = |name: &str| {
            let name = format!("default/{name}");
            node.pod("tells why it failed", &name, PATIENCE, |p| {
                p.phase() == "Failed" && p.container("main")["state"]["terminated"]["message"].is_string()
            })
        };
        let state = |pod: &Pod| pod.container("main")["state"]["terminated"].clone();
        let succeeded = ended("never-0", "Succeeded")?;
        ensure!(state(&succeeded)["exitCode"] == 0);
        wait::ok("a pod that has ended has no cgroup", PATIENCE, || {
            let name = format!("pod{}", succeeded.uid());
            let left: Vec<_> = cgroup::groups(&node.cgroup)
                .into_iter()
                .filter(|g| g.components().any(|c| c.as_os_str() == name.as_str()))
                .collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        let failed = state(&told("never-3")?);
        ensure!(failed["exitCode"] == 3 && failed["reason"] == "Error", "{failed}");
        ensure!(failed["message"].as_str().is_some_and(|m| m.trim() == "why"), "{failed}");
        ensure!(state(&ended("on-failure-0", "Succeeded")?)["reason"] == "Completed");
        let killed = state(&ended("killed", "Failed")?);
        ensure!(killed["exitCode"] == 137, "{killed}");
        let fallback = state(&told("fallback")?);
        ensure!(fallback["message"].as_str().is_some_and(|m| m.trim() == "from the log"), "{fallback}");
        let unended = state(&told("unended")?);
        ensure!(unended["message"] == "first\nfatal: no newline", "{unended}");
        for name in ["on-failure-4", "always-0"] {
            let pod =
                node.pod("is held back after a restart", &format!("default/{name}"), BACK_OFF, |p| {
                    p.restarts("main") >= 1
                        && p.container("main")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                })?;
            ensure!(pod.phase() == "Running", "{name}: {}", pod.status());
            ensure!(pod.exit_code("main") == Some(if name == "always-0" { 0 } else { 4 }));
        }
        Ok(())
    });
}

#[test]
fn hooks_run_around_a_container_and_grace_ends_what_does_not_listen() {
    on_a_node(Build::Plain, |node| {
        let host = node.dir.join("notes");
        let volumes = format!(
            "volumes: [{{name: notes, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]",
            host.display()
        );
        let main = container(
            "main",
            "trap 'echo term >> /notes/all; exit 0' TERM; echo main >> /notes/all; while :; do sleep 1 & wait $!; done",
            "volumeMounts: [{name: notes, mountPath: /notes}]\nlifecycle:\n  postStart: {exec: {command: [sh, -c, \
             'while ! grep -q main /notes/all; do sleep 0.05; done; echo post >> /notes/all']}}\n  preStop: {exec: \
             {command: [sh, -c, 'echo \"$1\" >> /notes/all', pre, 'pre $(WORD) $$']}}\nenv: [{name: WORD, value: expanded}]",
        );
        apply(node, "hooks", &pod("hooks", &volumes, &main))?;
        apply(node, "deaf", &shell("deaf", "", "trap '' TERM; while :; do sleep 1; done"))?;
        node.ready("default/hooks")?;
        let deaf = node.ready("default/deaf")?.processes();
        node.remove("hooks.yaml")?;
        node.remove("deaf.yaml")?;
        node.gone("default/hooks", PATIENCE)?;
        node.gone("default/deaf", PATIENCE)?;
        ensure!(deaf.len() == 1 && deaf.values().all(|p| !p.alive()), "{deaf:?} still run");
        let notes = fs::read_to_string(host.join("all"))?;
        let lines: Vec<&str> = notes.lines().collect();
        // A hook's command is taken literally. Variables are expanded in the container's own command and in
        // probes' commands.
        ensure!(lines == ["main", "post", "pre $(WORD) $$", "term"], "{lines:?}");
        Ok(())
    });
}

#[test]
fn probes_gate_readiness_and_restart_what_is_not_alive() {
    on_a_node(Build::Plain, |node| {
        let web = container(
            "main",
            "mkdir /www; echo ok > /www/ready; echo ok > /www/alive; exec httpd -f -p 80 -h /www",
            "startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1}\nreadinessProbe: {httpGet: {path: /ready, port: 80}, \
             periodSeconds: 1, failureThreshold: 1}\nlivenessProbe: {exec: {command: [test, -e, /www/alive]}, \
             periodSeconds: 1, failureThreshold: 1}",
        );
        apply(node, "web", &pod("web", "", &web))?;
        let before = node.ready("default/web")?;
        node.exec("default/web/main", &["rm", "/www/ready"])?;
        let unready =
            node.pod("is not Ready", "default/web", PATIENCE, |p| p.condition("Ready") == "False")?;
        ensure!(unready.processes() == before.processes(), "readiness has restarted a container");
        ensure!(!unready.waiting_for().is_empty());
        node.exec("default/web/main", &["touch", "/www/ready"])?;
        node.ready("default/web")?;
        node.exec("default/web/main", &["rm", "/www/alive"])?;
        let after =
            node.pod("is restarted", "default/web", PATIENCE, |p| p.restarts("main") == 1 && p.ready())?;
        ensure!(after.processes() != before.processes());
        Ok(())
    });
}

#[test]
fn commands_of_probes_and_hooks_run_in_a_container_with_a_seccomp_filter() {
    on_a_node(Build::Plain, |node| {
        let confined = container(
            "main",
            "touch /tmp/alive; exec sleep infinity",
            "securityContext: {seccompProfile: {type: RuntimeDefault}}\n\
             lifecycle: {postStart: {exec: {command: [touch, /tmp/started]}}}\n\
             startupProbe: {exec: {command: [test, -e, /tmp/started]}, periodSeconds: 1}\n\
             readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}\n\
             livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}",
        );
        apply(node, "confined", &pod("confined", "", &confined))?;
        let started = node.pod("has passed its startup probe", "default/confined", PATIENCE, |p| {
            p.container("main")["started"] == true
        })?;
        let process = *started.processes().get("main").context("no process")?;
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        ensure!(status.lines().any(|l| l == "Seccomp:\t2"), "it has no filter: {status}");
        ensure!(!started.ready(), "its readiness probe cannot have succeeded yet");
        node.exec("default/confined/main", &["touch", "/tmp/ready"])?;
        node.ready("default/confined")?;
        node.exec("default/confined/main", &["rm", "/tmp/alive"])?;
        node.pod("is restarted", "default/confined", PATIENCE, |p| p.restarts("main") == 1)?;
        Ok(())
    });
}

/// A file of the group that a process has for this controller.
fn group_file(process: Process, controller: &str, file: &str) -> anyhow::Result<String> {
    let own = fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
    let line =
        own.lines().find(|l| l.split(':').nth(1).is_some_and(|c| c.split(',').any(|c| c == controller)));
    let path =
        line.and_then(|l| l.splitn(3, ':').nth(2)).with_context(|| format!("no {controller} group"))?;
    let root =
        cgroup::hierarchies().into_iter().find(|h| h.join(path.trim_start_matches('/')).join(file).exists());
    let root = root.with_context(|| format!("no {file} at {path}"))?;
    Ok(fs::read_to_string(root.join(path.trim_start_matches('/')).join(file))?.trim().to_owned())
}

/// Limits of a process's group: CPU quota in microseconds per 100 ms, and memory in MiB.
fn limits_of(process: Process) -> anyhow::Result<(i64, u64)> {
    let v1 = fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?.lines().count() > 1;
    let (quota, memory) = if v1 {
        (
            group_file(process, "cpu", "cpu.cfs_quota_us")?,
            group_file(process, "memory", "memory.limit_in_bytes")?,
        )
    } else {
        (group_file(process, "", "cpu.max")?.replace(" 100000", ""), group_file(process, "", "memory.max")?)
    };
    Ok((quota.parse()?, memory.parse::<u64>()? >> 20))
}

#[test]
fn a_resize_reaches_the_kernel_and_the_record_without_a_restart() {
    on_a_node(Build::Plain, |node| {
        let sized = |cpu: u32, memory: u32| {
            let resources = |name: &str, more: &str| {
                let extra = format!("resources: {{limits: {{cpu: {cpu}m, memory: {memory}Mi}}}}\n{more}");
                container(name, "exec sleep infinity", &extra)
            };
            let again =
                resources("again", "resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]");
            let text = pod("sized", "", &format!("{}{again}", resources("main", "")));
            text.replace("{name: sized}", "{name: sized, uid: sized-1}")
        };
        let shown = |p: &Pod, name: &str| {
            let of = &p.container(name)["resources"]["limits"];
            (of["cpu"].as_str().map(str::to_owned), of["memory"].as_str().map(str::to_owned))
        };
        apply(node, "sized", &sized(200, 64))?;
        let first = node.ready("default/sized")?;
        let process = |p: &Pod, name: &str| p.processes().get(name).copied().context("no process");
        let main = process(&first, "main")?;
        ensure!(limits_of(main)? == (20_000, 64));
        for (cpu, memory, restarts) in [(300, 96, 1), (100, 48, 2)] {
            apply(node, "sized", &sized(cpu, memory))?;
            let wanted = (Some(format!("{cpu}m")), Some(format!("{memory}Mi")));
            let now = node.pod("is resized", "default/sized", PATIENCE, |p| {
                p.ready()
                    && p.restarts("again") == restarts
                    && shown(p, "main") == wanted
                    && p.condition("PodResizeInProgress") != "True"
            })?;
            let set = (i64::from(cpu) * 100, u64::from(memory));
            ensure!(process(&now, "main")? == main && now.restarts("main") == 0);
            ensure!(limits_of(main)? == set, "{:?}", limits_of(main)?);
            ensure!(limits_of(process(&now, "again")?)? == set);
        }
        // The next agent finds the resources on the records.
        let again = process(&node.ready("default/sized")?, "again")?;
        node.kill_agent()?;
        node.start_agent()?;
        let after = node.ready("default/sized")?;
        ensure!(shown(&after, "main") == (Some("100m".into()), Some("48Mi".into())));
        ensure!(process(&after, "main")? == main && process(&after, "again")? == again);
        // More is in use than this: the limits stay, and the condition says why.
        apply(node, "sized", &sized(100, 0).replace("memory: 0Mi", "memory: 8Ki"))?;
        node.pod("says why", "default/sized", PATIENCE, |p| p.condition("PodResizeInProgress") == "True")?;
        ensure!(limits_of(main)? == (10_000, 48));
        Ok(())
    });
}

#[test]
fn limits_reach_the_kernel_and_too_much_memory_ends_a_container() {
    on_a_node(Build::Plain, |node| {
        let limited = container(
            "main",
            "exec sleep infinity",
            "resources: {requests: {cpu: 250m, memory: 16Mi}, limits: {cpu: 500m, memory: 32Mi}}",
        );
        apply(node, "limited", &pod("limited", "", &limited))?;
        let greedy = container("main", "exec tail /dev/zero", "resources: {limits: {memory: 16Mi}}");
        apply(node, "greedy", &pod("greedy", "restartPolicy: Never", &greedy))?;
        let limited = node.ready("default/limited")?;
        let process = *limited.processes().get("main").context("no process")?;
        let own = fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
        let read = |controller: &str, file: &str| group_file(process, controller, file);
        if own.lines().count() > 1 {
            ensure!(read("memory", "memory.limit_in_bytes")? == (32 << 20).to_string());
            ensure!(read("cpu", "cpu.shares")? == "256");
            ensure!(read("cpu", "cpu.cfs_quota_us")? == "50000");
        } else {
            ensure!(read("", "memory.max")? == (32 << 20).to_string());
            ensure!(read("", "cpu.max")? == "50000 100000");
        }
        ensure!(own.contains(&format!("kubepods/burstable/pod{}", limited.uid())), "{own}");
        let greedy = node.pod("is Failed", "default/greedy", PATIENCE, |p| p.phase() == "Failed")?;
        let state = &greedy.container("main")["state"]["terminated"];
        ensure!(state["reason"] == "OOMKilled" && state["exitCode"] == 137, "{state}");
        Ok(())
    });
}

#[test]
fn pods_reach_each_other_and_their_configuration() {
    on_a_node(Build::Plain, |node| {
        let objects = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: conf}\ndata: {greeting: hello, page: one}\n---\n\
                       apiVersion: v1\nkind: Secret\nmetadata: {name: login}\nstringData: {user: me}\n---\n";
        let main = container(
            "main",
            "mkdir /www; echo \"$GREETING $(cat /secret/user) $ME\" > /www/index.html; exec httpd -f -p 80 -h /www",
            "env:\n- {name: GREETING, valueFrom: {configMapKeyRef: {name: conf, key: greeting}}}\n- {name: ME, valueFrom: \
             {fieldRef: {fieldPath: metadata.name}}}\nreadinessProbe: {httpGet: {port: 80}, periodSeconds: 1}\n\
             volumeMounts: [{name: secret, mountPath: /secret, readOnly: true}, {name: conf, mountPath: /conf}]",
        );
        let volumes =
            "volumes: [{name: secret, secret: {secretName: login}}, {name: conf, configMap: {name: conf}}]";
        let text = format!("{objects}{}", pod("server", volumes, &main));
        apply(node, "server", &text)?;
        apply(node, "client", &shell("client", "", "exec sleep infinity"))?;
        let server = node.ready("default/server")?;
        node.ready("default/client")?;
        let ips = server.status()["podIPs"].as_array().cloned().unwrap_or_default();
        ensure!(ips.len() == 2, "{ips:?}");
        for ip in &ips {
            let ip = ip["ip"].as_str().context("no ip")?;
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let page = node.exec(
                "default/client/main",
                &["timeout", "5", "wget", "-q", "-O", "-", &format!("http://{host}/")],
            )?;
            ensure!(page.trim() == "hello me server", "{page:?}");
        }
        apply(node, "server", &text.replace("page: one", "page: two"))?;
        wait::ok("the new value reaches the running pod", PATIENCE, || {
            let now = node.exec("default/server/main", &["cat", "/conf/page"])?;
            ensure!(now == "two", "{now:?}");
            Ok(())
        })?;
        ensure!(node.ready("default/server")?.processes() == server.processes(), "it was restarted for it");
        Ok(())
    });
}

#[test]
fn volumes_of_an_image_begin_with_its_files_and_go_with_the_container() {
    on_a_node(Build::Plain, |node| {
        // The volumes of a one-layer image are bind mounts, those of a three-layer image overlays. The
        // topmost layer removes a file.
        let config = serde_json::json!({
            "Env": ["PATH=/bin"], "User": "1234",
            "Volumes": {"/data": {}, "/new/volume": {}, "/mounted": {}},
        });
        let owned = |e: oci::Entry| oci::Entry { owner: (1234, 99), ..e };
        let data = vec![
            owned(oci::Entry::dir("data", 0o750)),
            owned(oci::Entry::file("data/seed", 0o640, "of the image")),
            oci::Entry::symlink("data/link", "/etc/passwd"),
        ];
        let mut one =
            oci::Image::busybox("berth.test/one-layer:1")?.variant("berth.test/one-layer:1", config.clone());
        let mut three = one.variant("berth.test/three-layers:1", config);
        one.layers[0].extend(data.clone());
        three.layers.push([data, vec![owned(oci::Entry::file("data/taken", 0o640, "away"))]].concat());
        three.layers.push(vec![oci::Entry::file("data/.wh.taken", 0o644, "")]);
        for image in [&one, &three] {
            image::import(&node.containerd, &node.dir, image)?;
        }
        let containers: String = [&one, &three]
            .iter()
            .enumerate()
            .map(|(n, image)| {
                format!(
                    "  - name: c{n}\n    image: {}\n    command: [sh, -c, 'while ! test -e /data/end; do sleep 0.1; done']\n    \
                     securityContext: {{readOnlyRootFilesystem: true}}\n    volumeMounts: [{{name: m, mountPath: /mounted}}]\n",
                    image.name
                )
            })
            .collect();
        apply(node, "volumes", &pod("volumes", "volumes: [{name: m, emptyDir: {}}]", &containers))?;
        let ready = node.ready("default/volumes")?;
        let run = |container: &str, script: &str| {
            node.exec(&format!("default/volumes/{container}"), &["sh", "-c", script])
        };
        let directories = node.roots.pod_dir(&ready.uid().parse()?).join("image-volumes");
        for container in ["c0", "c1"] {
            let seen =
                run(container, "cat /data/seed; readlink /data/link; ls /data | wc -l; touch /data/written")?;
            ensure!(seen == "of the image/etc/passwd\n2\n", "{container}: {seen:?}");
            let seen = run(
                container,
                "stat -c '%u %g %a' /data /data/seed /new/volume; grep -c ' /mounted ' /proc/mounts",
            )?;
            ensure!(seen == "1234 99 750\n1234 99 640\n0 0 755\n1\n", "{container}: {seen:?}");
            ensure!(run(container, "touch /elsewhere").is_err(), "{container}: the root is writable");
        }
        ensure!(fs::read_dir(&directories)?.count() == 2, "one for each container");

        // The next agent keeps the volumes as they are. A restarted container gets new ones.
        node.kill_agent()?;
        node.start_agent()?;
        node.ready("default/volumes")?;
        ensure!(run("c1", "ls /data/written")? == "/data/written\n");
        run("c1", "touch /data/end")?;
        node.pod("has c1 running again", "default/volumes", PATIENCE, |p| {
            p.restarts("c1") == 1 && p.ready()
        })?;
        let seen = run("c1", "ls /data; cat /data/seed")?;
        ensure!(seen == "link\nseed\nof the image", "{seen:?}");
        ensure!(run("c0", "ls /data/written")? == "/data/written\n", "the other one's stay");
        ensure!(!ready.uid().is_empty() && fs::read_dir(&directories)?.count() == 3);
        node.remove("volumes.yaml")?;
        node.gone("default/volumes", PATIENCE)?;
        ensure!(!directories.exists(), "{} is left", directories.display());
        Ok(())
    });
}

/// Fails unless the pod `one` is Ready and runs in the given processes.
fn same(node: &Node, before: &BTreeMap<String, Process>) -> anyhow::Result<()> {
    let now = node.ready("default/one")?;
    ensure!(now.processes() == *before, "before {before:?}, now {}", now.0);
    Ok(())
}

#[test]
fn a_bad_or_missing_manifest_ends_nothing() {
    on_a_node(Build::Plain, |node| {
        apply(node, "one", &shell("one", "", "exec sleep infinity"))?;
        let before = node.ready("default/one")?.processes();
        // An invalid manifest replaces the good one: the pod must keep running, also under an agent that
        // never read the good one.
        apply(node, "one", "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec: {containers: 7}\n")?;
        apply(node, "two", &shell("two", "", "exec sleep infinity"))?;
        node.ready("default/two")?;
        node.kill_agent()?;
        node.start_agent()?;
        same(node, &before)?;
        // A missing directory must not count as an empty one.
        let (there, away) = (node.manifests(), node.dir.join("away"));
        fs::rename(&there, &away)?;
        node.kill_agent()?;
        node.start_agent()?;
        same(node, &before)?;
        fs::rename(&away, &there)?;
        apply(node, "three", &shell("three", "", "exec sleep infinity"))?;
        node.ready("default/three")?;
        same(node, &before)?;
        let status = node.berth(&["status"])?;
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        ensure!(text.contains("one.yaml") && text.contains("containers"), "berth status says: {text}");
        Ok(())
    });
}
