package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// parseNames accepts what can be both a file's name and a host's.
func parseNames(s string) (names []string, err error) {
	plain := regexp.MustCompile(`^[A-Za-z0-9_:]([A-Za-z0-9_:.-]*[A-Za-z0-9_:])?$`)
	for name := range strings.SplitSeq(s, ",") {
		name = strings.TrimSpace(name)
		switch {
		case !plain.MatchString(name):
			return nil, fmt.Errorf("%q is no name: want hosts or other words, like 127.0.0.1,client", name)
		case name == "ca" || strings.HasSuffix(name, "-key"):
			return nil, fmt.Errorf("%q is what the files of the authority and of keys are called: want another name", name)
		case slices.Contains(names, name):
			return nil, fmt.Errorf("%q is there twice: want each name once", name)
		}
		names = append(names, name)
	}
	return names, nil
}

// An authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// writeCertificates makes a certificate for each name, of the authority that
// is in dir. If there is none, it makes one. It replaces nothing.
func writeCertificates(dir string, names []string, out io.Writer) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	files := func(name string) (certificate, key string) {
		return filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	}
	for _, name := range names {
		certificate, key := files(name)
		for _, file := range []string{certificate, key} {
			if _, err := os.Lstat(file); err == nil {
				return fmt.Errorf("%s exists: remove it to have it made again", file)
			}
		}
	}
	caFile, caKeyFile := files("ca")
	ca, err := loadAuthority(caFile, caKeyFile)
	if errors.Is(err, os.ErrNotExist) {
		ca, err = makeAuthority(caFile, caKeyFile)
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		certificateFile, keyFile := files(name)
		certificate := &x509.Certificate{
			Subject:  pkix.Name{CommonName: name},
			KeyUsage: x509.KeyUsageDigitalSignature,
			// Each process proves who it is, whether it dials or is dialled.
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if ip := net.ParseIP(name); ip != nil {
			certificate.IPAddresses = []net.IP{ip}
		} else {
			certificate.DNSNames = []string{name}
		}
		if _, err := ca.issue(certificate, certificateFile, keyFile); err != nil {
			return err
		}
		fmt.Fprintf(out, "-tls-ca %s -tls-cert %s -tls-key %s\n", caFile, certificateFile, keyFile)
	}
	return nil
}

// loadAuthority fails with os.ErrNotExist only if there is nothing of one.
func loadAuthority(file, keyFile string) (ca authority, err error) {
	_, missing := os.Lstat(file)
	_, missingKey := os.Lstat(keyFile)
	if missing != nil && missingKey != nil {
		return ca, missing
	}
	pair, err := tls.LoadX509KeyPair(file, keyFile)
	if err != nil {
		return ca, fmt.Errorf("an authority is a certificate and its key: %s", err) // not wrapped: one of them may not exist
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return ca, fmt.Errorf("%s is not an authority of ours", file)
	}
	return authority{pair.Leaf, key}, valid(file, pair.Leaf)
}

func makeAuthority(file, keyFile string) (authority, error) {
	return authority{}.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "pipeline"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, file, keyFile)
}

// issue writes a certificate that is valid for a year, but no longer than its
// authority, and its key. The zero authority has it signed by itself.
func (a authority) issue(certificate *x509.Certificate, file, keyFile string) (issued authority, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return issued, err
	}
	certificate.SerialNumber = big.NewInt(time.Now().UnixNano())
	certificate.NotBefore = time.Now().Add(-time.Hour) // clocks differ
	certificate.NotAfter = certificate.NotBefore.AddDate(1, 0, 0)
	if a.key == nil {
		a = authority{certificate, key}
	} else if a.certificate.NotAfter.Before(certificate.NotAfter) {
		certificate.NotAfter = a.certificate.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		return issued, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return issued, err
	}
	return authority{certificate, key}, errors.Join(writePEM(keyFile, "PRIVATE KEY", keyDER), writePEM(file, "CERTIFICATE", der))
}

// writePEM writes a file that does not exist.
func writePEM(name, kind string, der []byte) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(file, &pem.Block{Type: kind, Bytes: der}), file.Close())
}

// valid says if a certificate's time is over, or has not come.
func valid(file string, certificate *x509.Certificate) error {
	switch now := time.Now(); {
	case now.After(certificate.NotAfter):
		return fmt.Errorf("the certificate in %s ended on %s", file, certificate.NotAfter.Format(time.RFC1123))
	case now.Before(certificate.NotBefore):
		return fmt.Errorf("the certificate in %s begins only on %s", file, certificate.NotBefore.Format(time.RFC1123))
	}
	return nil
}

// tlsFiles are where a process's certificate is, and whose it accepts.
type tlsFiles struct{ cert, key, ca string }

// config is for both directions: here, each process proves to its peer who it
// is, whichever of them has dialled. It is nil where there are no files.
func (f tlsFiles) config() (*tls.Config, error) {
	if f == (tlsFiles{}) {
		return nil, nil
	}
	if f.cert == "" || f.key == "" || f.ca == "" {
		return nil, errors.New("want all three of -tls-cert, -tls-key and -tls-ca, or none")
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("-tls-cert %s, -tls-key %s: %w", f.cert, f.key, err)
	}
	if err := valid(f.cert, pair.Leaf); err != nil {
		return nil, fmt.Errorf("-tls-cert: %w", err)
	}
	authorities, err := f.authorities()
	if err != nil {
		return nil, fmt.Errorf("-tls-ca: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		RootCAs:      authorities,
		ClientCAs:    authorities,
		MinVersion:   tls.VersionTLS13,
	}, nil
}

func (f tlsFiles) authorities() (*x509.CertPool, error) {
	text, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, err
	}
	pool, some := x509.NewCertPool(), false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.ca, err)
		}
		if err := valid(f.ca, certificate); err != nil {
			return nil, err
		}
		pool.AddCert(certificate)
		some = true
	}
	if !some {
		return nil, fmt.Errorf("%s: want certificates in PEM", f.ca)
	}
	return pool, nil
}
