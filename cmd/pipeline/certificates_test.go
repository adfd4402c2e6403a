package main

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCertificatesAreAdded: those made later are of the same authority.
func TestCertificatesAreAdded(t *testing.T) {
	dir := t.TempDir()
	flags := func(name string) []string {
		return strings.Fields(launch(t, "certificates", "-dir", dir, "-names", name).succeeds(t))
	}
	first := flags("127.0.0.1")
	authority := read(t, dir, "ca.pem")
	second := flags("client")
	if read(t, dir, "ca.pem") != authority {
		t.Error("the authority has been replaced")
	}
	for _, name := range []string{"ca-key.pem", "127.0.0.1-key.pem", "client-key.pem"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	node := launch(t, append([]string{"node", "-address", "127.0.0.1:0", "-nodes", "1", "-interval", "5ms", "-alert-monitor"}, first...)...)
	launch(t, append([]string{"client", "-seeds", node.address(t), "-producers", "1"}, second...)...).succeeds(t)
	node.succeeds(t)
}

func TestCertificatesReplaceNothing(t *testing.T) {
	dir := t.TempDir()
	launch(t, "certificates", "-dir", dir, "-names", "a").succeeds(t)
	before := read(t, dir, "a.pem")
	refused := func(why, names string) {
		t.Helper()
		again := launch(t, "certificates", "-dir", dir, "-names", names)
		if status := again.wait(t); status != 1 || !strings.Contains(again.stderr.String(), why) {
			t.Errorf("status %d: %s", status, again.stderr)
		}
	}
	refused("a.pem exists: remove it", "b,a")
	if _, err := os.Stat(filepath.Join(dir, "b.pem")); err == nil {
		t.Error("it has made one of two")
	}
	if read(t, dir, "a.pem") != before {
		t.Error("it has replaced one")
	}
	if err := os.Remove(filepath.Join(dir, "ca-key.pem")); err != nil {
		t.Fatal(err)
	}
	refused("an authority is a certificate and its key: ", "c")
}

func TestExpiredCertificate(t *testing.T) {
	dir := t.TempDir()
	launch(t, "certificates", "-dir", dir, "-names", "a").succeeds(t)
	ca, err := loadAuthority(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	ended := time.Now().Add(-time.Minute)
	ca.certificate.NotAfter = ended // none of it is valid for longer
	old := filepath.Join(dir, "old.pem")
	if _, err := ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: "old"}}, old, filepath.Join(dir, "old-key.pem")); err != nil {
		t.Fatal(err)
	}
	node := launch(t, "node", "-tls-ca", filepath.Join(dir, "ca.pem"), "-tls-cert", old, "-tls-key", filepath.Join(dir, "old-key.pem"))
	want := "-tls-cert: the certificate in " + old + " ended on " + ended.UTC().Format(time.RFC1123)
	if status := node.wait(t); status != 2 || !strings.Contains(node.stderr.String(), want) {
		t.Errorf("status %d, no %q: %s", status, want, node.stderr)
	}
	node = launch(t, "node", "-tls-ca", old, "-tls-cert", filepath.Join(dir, "a.pem"), "-tls-key", filepath.Join(dir, "a-key.pem"))
	if status := node.wait(t); status != 2 || !strings.Contains(node.stderr.String(), "-tls-ca: the certificate in "+old+" ended on ") {
		t.Errorf("status %d: %s", status, node.stderr)
	}
}

func TestCertificatesAreIgnoredByGit(t *testing.T) {
	ignored := "\n" + read(t, "../..", ".gitignore")
	if !strings.Contains(ignored, "\ncerts/\n") {
		t.Errorf("certs/ is not in:%s", ignored)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
